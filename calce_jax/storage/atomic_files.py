"""Output files that are there as a whole or not at all."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Write a file under another name in its folder, then give it its own; folders are made.

    Args:
      path: the file; one that exists is replaced.
      content: bytes, or text to be written as UTF-8.

    Raises:
      OSError: it cannot be written, with the file and the remedy; what was there before is untouched.
    """
    with atomic_write(path) as partial_path:
        partial_path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give another name for a file in its folder; what is written there takes its place when all went well.

    Raises:
      OSError: as for `write_atomic`.
    """
    # A name of its own: two processes may write the same entry of a cache, or the captions of the same video.
    path, partial_path = Path(path), Path(f"{path}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial_path
        os.replace(partial_path, path)
    except OSError as error:
        with suppress(OSError):  # what failed first is what is told
            partial_path.unlink()
        raise OSError(
            error.errno, f"cannot write {path} ({error.strerror}); make room, or choose another place"
        ) from error
    except BaseException:
        partial_path.unlink(missing_ok=True)
        raise
