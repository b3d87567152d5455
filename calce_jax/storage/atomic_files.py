"""Output files and folders that exist as a whole or not at all: written under another name, then renamed.

A process that is killed leaves its partial file. The name says whose it is, so the next process that writes into the
folder removes it.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from time import sleep

from calce_jax.storage.file_names import fit_name

WRITE_ERROR, WRITE_REMEDY = "cannot write ", "make room, or choose another place"
NOT_ALLOWED_REMEDY = "you may not write there: choose another place"
# NAME.HOST-PID-RANDOM.part, see `atomic_write`.
_PARTIAL_NAME = re.compile(r"\.([0-9a-f]{8})-([1-9][0-9]{0,9})-[0-9a-f]{8}\.part$")
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)


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
    partial_path = path.with_name(fit_name(path.name, f".{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.part"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent.resolve())
        yield partial_path
        os.replace(partial_path, path)
    except OSError as error:
        with suppress(OSError):  # the first error is the one to report
            partial_path.unlink()
        raise write_error(path, error) from error
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise


@cache
def _remove_leftovers(folder: Path) -> None:
    """Remove the partial files that processes of this host, which were killed, have left in a folder.

    Once in a process: to list a folder of ten thousand videos for each of its files would take minutes.
    """
    with suppress(OSError):
        for name in os.listdir(folder):
            match = _PARTIAL_NAME.search(name)
            if match and match[1] == _host() and _has_ended(int(match[2])):
                with suppress(OSError):
                    (folder / name).unlink()


@cache
def _host() -> str:
    """Return a hash of this host's name and of its process ids' namespace, of which a container has its own."""
    namespace = ""
    with suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _has_ended(pid: int) -> bool:
    """Return whether a process of this host has ended; an id that was given again counts as running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):  # it runs, as another user; or this is no process id
        return False
    return False


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
    except BaseException as error:
        _remove_until_gone(new)
        if isinstance(error, OSError):
            raise write_error(path, error) from error
        raise
    finally:
        _put_back(path, old)
        shutil.rmtree(old, ignore_errors=True)


def _remove_until_gone(folder: Path) -> None:
    """Remove a folder that threads of the writer may still write to: after one write failed, Orbax's others go on.

    Such a write makes the folder again. It is removed until it was not there twice in a row, for a second at most.
    """
    absent = 0
    for _ in range(20):
        absent = 0 if folder.exists() else absent + 1
        if absent == 2:
            return
        shutil.rmtree(folder, ignore_errors=True)
        sleep(0.05)


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
    remedy = NOT_ALLOWED_REMEDY if error.errno in _NOT_ALLOWED else WRITE_REMEDY
    return OSError(error.errno, f"{WRITE_ERROR}{path} ({error.strerror or error}); {remedy}")
