"""Reading of text files that people give: annotations, predictions, captions, configs of models."""

from pathlib import Path

from calce_jax.errors import UserError, UserFileNotFoundError

BYTE_ORDER_MARK = "\N{BYTE ORDER MARK}"


def read_text(
    path: str | Path,
    description: str,
    remedy: str,
    error_type: type[UserError] = UserError,
    *,
    keep_byte_order_mark: bool = False,
) -> str:
    r"""Read a UTF-8 file; a byte order mark is dropped, "\r\n" stays.

    Args:
      path: the file.
      description: of its contents, such as "annotations", for the message.
      remedy: what to do where the file is missing.
      error_type: raised where it is not UTF-8.
      keep_byte_order_mark: as the original does.

    Raises:
      UserFileNotFoundError: there is no such file.
      UserError: `error_type`, it is a folder, may not be read, or is not UTF-8.
    """
    path = Path(path)
    if path.is_dir():
        raise error_type(f"{path} is a folder, not a file of {description}", "give the file")
    if not path.is_file():
        raise UserFileNotFoundError(f"{path}: no such file of {description}", remedy)
    try:
        text = path.read_bytes().decode("utf-8")
    except PermissionError:
        raise error_type(f"{path}: you may not read it", "change its permissions") from None
    except UnicodeDecodeError as error:
        raise error_type(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    return text if keep_byte_order_mark else text.removeprefix(BYTE_ORDER_MARK)
