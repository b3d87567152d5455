"""A size-bounded folder of results that can be computed again; it may be deleted at any time, as a whole or in part.

An entry is a file named by a hash of its inputs (`make_cache_key`), so it is never out of date. When the folder exceeds
its bound, the least recently used entries are deleted. If the folder cannot be written, nothing is cached and one
warning is logged. An entry is

    MAGIC, SHA-256 of (kind "/" key "\n" content), content

An entry with a wrong checksum, or one that cannot be read, counts as absent: the first is logged as a warning, and the
caller computes it again. Entries of earlier versions had no checksum. Arrays are stored as a JSON list of name, dtype
and shape, then their bytes: safetensors cannot load bfloat16 from bytes, and its Flax loader makes float32 of float64.
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

EntryKind = Literal["frames", "captions", "features", "executables", "thumbnails"]
DEFAULT_LIMIT_GB = 10.0
MAGIC = b"calce cache 2\n"
# SHA-256 takes 5 ms for 8 MB, the features of a segment at the full size, on a CPU with instructions for it (AMD EPYC,
# one core); BLAKE2b takes 10 ms, CRC-32 2 ms. Computing the features takes the towers' time for 150 frames.
OVERHEAD = len(MAGIC) + hashlib.sha256().digest_size
# By name. No other dtype is read: with "object" in a header, numpy would follow the bytes as pointers.
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
    """Return the default folder: `$CALCE_CACHE`, or `calce` in `$XDG_CACHE_HOME` or in ~/.cache."""
    override = os.environ.get("CALCE_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(override) if override else Path(caches) / "calce"


def make_cache_key(**parts: Any) -> str:
    """Return 40 hexadecimal digits of a hash of `parts`, whose values JSON can represent."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


class DiskCache:
    """A cache of byte strings and of named arrays.

    Args:
      folder: created when the first entry is written.
      max_bytes: bound of the size of all entries together.
    """

    def __init__(self, folder: str | Path, max_bytes: int = int(DEFAULT_LIMIT_GB * 1e9)):
        self.folder, self.max_bytes = Path(folder), max_bytes
        self._warned_of_writing = self._warned_of_reading = False

    def read(self, kind: EntryKind, cache_key: str) -> bytes | None:
        """Return the content of an entry, or None if it is absent or damaged."""
        path = self.folder / kind / cache_key
        try:
            entry = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            self.refuse(kind, cache_key, error.strerror or error)
            return None
        content = entry[OVERHEAD:]
        if entry[:OVERHEAD] != _header(kind, cache_key, content):
            self.refuse(kind, cache_key, "damaged, or of an earlier version")
            return None
        with suppress(OSError):  # another user's entry may be readable, but not its time of use writable
            os.utime(path)
        return content

    def write(self, kind: EntryKind, cache_key: str, content: bytes) -> None:
        """Write an entry, deleting old ones if the bound is exceeded; an entry larger than the bound is not written."""
        if OVERHEAD + len(content) > self.max_bytes:
            return
        try:
            write_atomic(self.folder / kind / cache_key, _header(kind, cache_key, content) + content)
            self._evict()
        except OSError as error:
            if not self._warned_of_writing:
                logging.warning("nothing is cached: %s", error)
            self._warned_of_writing = True

    def read_arrays(self, kind: EntryKind, cache_key: str) -> dict[str, np.ndarray] | None:
        """Return the arrays of an entry, bit for bit as written, or None if it is absent or damaged."""
        content = self.read(kind, cache_key)
        if content is None:
            return None
        try:
            return _unpack_arrays(content)
        except ValueError as error:
            self.refuse(kind, cache_key, error)
            return None

    def write_arrays(self, kind: EntryKind, cache_key: str, arrays: Mapping[str, Any]) -> None:
        """Write an entry of arrays.

        Raises:
          TypeError: an array has a dtype that is not in `DTYPES`.
        """
        self.write(kind, cache_key, _pack_arrays(arrays))

    def refuse(self, kind: EntryKind, key: str, reason: object) -> None:
        """Warn, once for this cache, that an entry cannot be used and is computed again."""
        if not self._warned_of_reading:
            logging.warning("%s is computed again: %s", self.folder / kind / key, reason)
        self._warned_of_reading = True

    def total_bytes(self) -> int:
        """Return the size of all entries together."""
        return sum(size for _, size, _ in self._entries())

    def _evict(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.max_bytes:
                return
            with suppress(OSError):  # it cannot be removed, or another process removed it: go on with the others
                path.unlink()
                total -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """Return (time of last use in ns, bytes, path) of every entry; another process may be deleting some."""
        entries = []
        for path in (path for kind in get_args(EntryKind) for path in self.folder.glob(f"{kind}/*")):
            try:
                status = path.stat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                entries.append((status.st_mtime_ns, status.st_size, path))
        return entries


def _header(kind: EntryKind, key: str, content: bytes) -> bytes:
    """Return the bytes before the content. The checksum covers kind and key, so that a renamed file is not accepted."""
    checksum = hashlib.sha256(f"{kind}/{key}\n".encode())
    checksum.update(content)
    return MAGIC + checksum.digest()


def _pack_arrays(arrays: Mapping[str, Any]) -> bytes:
    specs: list[tuple[str, str, tuple[int, ...]]] = []
    parts: list[bytes] = []
    for name, array in arrays.items():
        host = np.asarray(array)
        if host.dtype.name not in DTYPES:
            raise TypeError(f"array {name} has dtype {host.dtype}; a cache stores {', '.join(DTYPES)}")
        specs.append((name, host.dtype.name, host.shape))
        parts.append(host.astype(DTYPES[host.dtype.name], copy=False).tobytes())  # C order, native byte order
    header = json.dumps(specs).encode()
    return b"".join([len(header).to_bytes(8, "little"), header, *parts])


def _unpack_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Undo `_pack_arrays`.

    Raises:
      ValueError: the content is not what `_pack_arrays` writes.
    """
    offset = 8 + int.from_bytes(content[:8], "little")
    arrays: dict[str, np.ndarray] = {}
    try:
        for name, dtype, shape in json.loads(content[8:offset]):
            if not isinstance(name, str) or any(type(size) is not int or size < 0 for size in shape):
                raise ValueError(f"its header has {name!r} of shape {shape!r}")
            part = content[offset : offset + math.prod(shape) * DTYPES[dtype].itemsize]
            arrays[name] = np.frombuffer(part, DTYPES[dtype]).reshape(shape)
            offset += len(part)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"it is not an entry of arrays ({error!r:.200})") from error
    if offset != len(content):
        raise ValueError(f"it has {len(content)} bytes, its header describes {offset}")
    return arrays
