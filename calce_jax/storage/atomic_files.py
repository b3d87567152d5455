"""Output files and folders that exist as a whole or not at all: written under another name, then renamed."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from calce_jax.storage.file_names import fit_name

WRITE_ERROR, WRITE_REMEDY = "cannot write ", "make room, or choose another place"


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file under another name in its folder, then rename it; missing folders are created.

    Args:
      path: the file; one that exists is replaced.
      content: bytes, or text to be written as UTF-8.

    Raises:
      OSError: it cannot be written; names the file and the remedy. What was there before is untouched.
    """
    with atomic_write(path) as partial_path:
        partial_path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield another name in the folder of `path`; the file written there replaces `path` unless the body raises.

    Raises:
      OSError: as for `write_atomic`.
    """
    # A name of its own: two processes may write the same entry of a cache, or the captions of the same video.
    path = Path(path)
    partial_path = path.with_name(fit_name(path.name, f".{uuid.uuid4().hex[:8]}.part"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial_path
        os.replace(partial_path, path)
    except OSError as error:
        with suppress(OSError):  # the first error is the one to report
            partial_path.unlink()
        raise write_error(path, error) from error
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise


def link_or_copy(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if it is on another disk; replaces an older file.

    Raises:
      OSError: the file cannot be written.
    """
    if target.exists() and target.samefile(source):
        return
    with atomic_write(target) as tmp_path:
        tmp_path.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), tmp_path)
        except OSError:
            shutil.copyfile(source, tmp_path)


@contextmanager
def atomic_replace_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which replaces `path` unless the body raises.

    The folder that was there is renamed before the new one takes its name. A process that is killed between the two
    leaves it under its other name: the next call puts it back first, and `find_dir` reads it there.

    Raises:
      OSError: it cannot be written; names the folder and the remedy. What was there before is untouched.
    """
    new, old = path.with_name(fit_name(path.name, ".part")), _old_dir(path)
    try:
        _put_back(path, old)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        new.mkdir(parents=True)
        yield new
        if path.exists():
            path.rename(old)
        new.rename(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        _put_back(path, old)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)


def find_dir(path: Path) -> Path:
    """Return where a folder that `atomic_replace_dir` writes can be read: `path`, but for a kill in mid-swap."""
    old = _old_dir(path)
    return old if old.exists() and not path.exists() else path


def _old_dir(path: Path) -> Path:
    return path.with_name(fit_name(path.name, ".old"))


def _put_back(path: Path, old: Path) -> None:
    if old.exists() and not path.exists():
        old.rename(path)


def write_error(path: str | Path, error: OSError) -> OSError:
    """Return an error with the same number that names the file or folder and the remedy; the innermost one is kept."""
    if (error.strerror or "").startswith(WRITE_ERROR):
        return OSError(error.errno, error.strerror)
    return OSError(error.errno, f"{WRITE_ERROR}{path} ({error.strerror or error}); {WRITE_REMEDY}")
