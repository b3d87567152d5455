"""A folder of results that can be computed again: bounded, and safe to delete at any time, as a whole or in part.

An entry is a file named by what it was made from (`make_cache_key`), so nothing in it can be out of date. The entries that were
not used for longest go first when the folder grows beyond its bound. A folder that cannot be written holds nothing,
and a warning says so once.

    MAGIC, SHA-256 of (kind "/" key "\n" content), content

An entry whose checksum does not fit, or that cannot be read, counts as absent: a warning names the first, and the
caller makes it anew. Entries of earlier versions had no checksum. Arrays are stored as a JSON list of name, dtype and
shape, then their bytes: safetensors cannot load bfloat16 from bytes, and its Flax loader makes float32 of float64.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from absl import logging

from calce_jax.storage.atomic_files import write_atomic

EntryKind = Literal["frames", "captions", "features"]
DEFAULT_LIMIT_GB = 10.0
MAGIC = b"calce cache 2\n"
# SHA-256 takes 5 ms for 8 MB, the features of a piece at the full size, on a CPU with instructions for it (AMD EPYC,
# one core); BLAKE2b takes 10 ms, CRC-32 2 ms. Seeing the piece takes the towers' time for 150 frames.
OVERHEAD = len(MAGIC) + hashlib.sha256().digest_size
# By name. Only these are read: a header that names "object" must not make numpy follow the bytes as pointers.
DTYPES: dict[str, np.dtype] = {
    dtype.name: dtype
    for dtype in map(
        np.dtype,
        (
            np.bool_,
            *(np.int8, np.int16, np.int32, np.int64),
            *(np.uint8, np.uint16, np.uint32, np.uint64),
            *(np.float16, np.float32, np.float64),
            *(ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2),
        ),
    )
}


def default_cache_dir() -> Path:
    """Return where entries go unless told otherwise: `$CALCE_CACHE`, or `calce` where a user's caches are."""
    override = os.environ.get("CALCE_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(override) if override else Path(caches) / "calce"


def make_cache_key(**parts: Any) -> str:
    """Return the name of an entry made from these, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class DiskCache:
    """Entries of bytes, or of named arrays.

    Args:
      folder: made when the first entry is written.
      max_bytes: bytes that all entries together may take.
    """

    def __init__(self, folder: str | Path, max_bytes: int = int(DEFAULT_LIMIT_GB * 1e9)):
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._warned_of_writing = self._warned_of_reading = False

    def read(self, kind: EntryKind, cache_key: str) -> bytes | None:
        """Return the content of an entry, or nothing if it is absent or damaged."""
        path = self.folder / kind / cache_key
        try:
            entry = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.refuse(kind, cache_key, error.strerror or error)
            return None
        content = entry[OVERHEAD:]
        if entry[:OVERHEAD] != _head(kind, cache_key, content):
            self.refuse(kind, cache_key, "damaged, or of an earlier version")
            return None
        with suppress(OSError):  # an entry of another user can be read, but not marked as used
            os.utime(path)
        return content

    def write(self, kind: EntryKind, cache_key: str, content: bytes) -> None:
        """Keep an entry, and drop others if it does not fit beside them; one larger than the bound is not kept."""
        if OVERHEAD + len(content) > self.max_bytes:
            return
        try:
            write_atomic(self.folder / kind / cache_key, _head(kind, cache_key, content) + content)
            self._evict()
        except OSError as error:
            if not self._warned_of_writing:
                logging.warning("nothing is kept for later: %s", error)
            self._warned_of_writing = True

    def read_arrays(self, kind: EntryKind, cache_key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of an entry as they were written, bit by bit, or nothing if it is absent or damaged."""
        content = self.read(kind, cache_key)
        if content is None:
            return None
        try:
            return _unpacked(content)
        except ValueError as error:
            self.refuse(kind, cache_key, error)
            return None

    def write_arrays(self, kind: EntryKind, cache_key: str, arrays: Mapping[str, Any]) -> None:
        """Keep an entry of arrays.

        Raises:
          TypeError: an array has a dtype that is not in `DTYPES`.
        """
        self.write(kind, cache_key, _packed(arrays))

    def refuse(self, kind: EntryKind, key: str, reason: object) -> None:
        """Warn, once for this cache, that an entry cannot be used, for a caller that makes it anew."""
        if not self._warned_of_reading:
            logging.warning("%s is made anew: %s", self.folder / kind / key, reason)
        self._warned_of_reading = True

    def total_bytes(self) -> int:
        """Return the bytes that all entries take."""
        return sum(size for _, size, _ in self._entries())

    def _evict(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                return
            with suppress(OSError):  # one that cannot be removed, or is gone already, does not keep the others
                path.unlink()
                total -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """List (last used, bytes, path); another process may be deleting."""
        entries = []
        for path in (path for kind in get_args(EntryKind) for path in self.folder.glob(f"{kind}/*")):
            try:
                about = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(about.st_mode):
                entries.append((about.st_mtime_ns, about.st_size, path))
        return entries


def _head(kind: EntryKind, key: str, content: bytes) -> bytes:
    """Return the bytes before the content. Kind and key are in the checksum: a file that was renamed does not pass."""
    checksum = hashlib.sha256(f"{kind}/{key}\n".encode())
    checksum.update(content)
    return MAGIC + checksum.digest()


def _packed(arrays: Mapping[str, Any]) -> bytes:
    about: list[tuple[str, str, tuple[int, ...]]] = []
    parts: list[bytes] = []
    for name, array in arrays.items():
        host = np.asarray(array)
        if host.dtype.name not in DTYPES:
            raise TypeError(f"array {name} has dtype {host.dtype}; a cache keeps {', '.join(DTYPES)}")
        about.append((name, host.dtype.name, host.shape))
        parts.append(host.astype(DTYPES[host.dtype.name], copy=False).tobytes())  # in C order, of this machine's bytes
    header = json.dumps(about).encode()
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])


def _unpacked(content: bytes) -> dict[str, np.ndarray]:
    """Undo `_packed`.

    Raises:
      ValueError: the content is something else.
    """
    at = 8 + int.from_bytes(content[:8], "little")
    arrays: dict[str, np.ndarray] = {}
    try:
        for name, dtype, shape in json.loads(content[8:at]):
            if not isinstance(name, str) or any(type(size) is not int or size < 0 for size in shape):
                raise ValueError(f"its header has {name!r} of shape {shape!r}")
            part = content[at : at + math.prod(shape) * DTYPES[dtype].itemsize]
            arrays[name] = np.frombuffer(part, DTYPES[dtype]).reshape(shape)
            at += len(part)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it holds no arrays ({error!r:.200})") from error
    if at != len(content):
        raise ValueError(f"it has {len(content)} bytes, its header tells of {at}")
    return arrays
