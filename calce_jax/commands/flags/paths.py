"""Check the paths that the flags of a command name, before anything heavy is imported or written."""

import os
from collections.abc import Mapping
from pathlib import Path

from calce_jax.errors import UsageError


def check_output_file(flag: str, path: str, inputs: Mapping[str, str | Path | None]) -> None:
    """Check that a flag names a file that can be written, and none of the command's inputs.

    Args:
      flag: the command line up to the path, such as "--out=" or "--target=base:".
      path: the file; it need not exist.
      inputs: what else the command reads or writes, as {flag: file or folder}; without a value it is not compared.

    Raises:
      UsageError: the path is empty or a folder, lies below a file or where one may not write, or is an input or an
        existing file in one.
    """
    if not path:
        raise UsageError(f"{flag.rstrip('=')} is empty", "give a file")
    if path.endswith(os.sep) or os.path.isdir(path):
        raise UsageError(f"{flag}{path} is a folder, not a file", "choose a file")
    if os.path.exists(path) and not os.path.isfile(path):
        raise UsageError(f"{flag}{path} is a device or a pipe, which a file cannot replace", "choose a file")
    _check_parents(flag, path)
    for other, value in inputs.items():
        if not value:
            continue
        if _is_same(path, value):
            raise UsageError(f"{flag}{path} is the file of {other}", "choose another")
        if os.path.exists(path) and _is_below(path, value):
            raise UsageError(f"{flag}{path} is a file in the folder of {other}", "choose another")


def check_folder(flag: str, path: str, inputs: Mapping[str, str | Path | None] | None = None) -> None:
    """Check that a flag names a folder, new or not, that neither is nor holds any of the inputs of a command.

    Args:
      flag: the command line up to the path, such as "--out=".
      path: the folder; it need not exist.
      inputs: what the command reads, and what would be replaced, as for `check_output_file`.

    Raises:
      UsageError: the path is empty or a file, lies below a file or where one may not write, or is an input or holds
        one.
    """
    if not path:
        raise UsageError(f"{flag.rstrip('=')} is empty", "give a folder")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise UsageError(f"{flag}{path} is a file, not a folder", "choose a folder")
    _check_parents(flag, path)
    for other, value in (inputs or {}).items():
        if value and _is_same(path, value):
            raise UsageError(f"{flag}{path} is the folder of {other}", "choose another")
        if value and _is_below(value, path):
            raise UsageError(f"{flag}{path} holds the files of {other}", "choose another folder")


def _check_parents(flag: str, path: str) -> None:
    for parent in (Path(path).absolute(), *Path(path).absolute().parents):
        if os.path.isdir(parent):
            if not os.access(parent, os.W_OK | os.X_OK):
                raise UsageError(f"{flag}{path}: you may not write there", "choose another")
            return
        if os.path.lexists(parent) and parent != Path(path).absolute():
            raise UsageError(f"{flag}{path}: {parent} is a file, not a folder", "choose another path")


def _is_same(path: str | Path, other: str | Path) -> bool:
    """Return whether two paths are one file or folder, also by way of links."""
    try:
        return os.path.samefile(path, other)
    except OSError:  # one of them does not exist
        return os.path.realpath(path) == os.path.realpath(other)


def _is_below(path: str | Path, folder: str | Path) -> bool:
    return any(_is_same(parent, folder) for parent in Path(os.path.realpath(path)).parents)
