"""A folder of results that can be computed again: bounded, and safe to delete at any time, as a whole or in part.

An entry is a file named by what it was made from (`key_of`), so nothing in it can be out of date. The entries that were
not used for longest go first when the folder grows beyond its bound. What cannot be read is not there; a folder that
cannot be written holds nothing, and says so once.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import safetensors
from absl import logging
from safetensors.flax import load as load_arrays
from safetensors.flax import save as save_arrays

from calce_jax.storage.atomic_files import write_output

Kind = Literal["frames", "captions", "features"]
LIMIT_GB = 10.0


def default_folder() -> Path:
    """Return where entries go unless told otherwise: `$CALCE_CACHE`, or `calce` where a user's caches are."""
    named = os.environ.get("CALCE_CACHE")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(caches) / "calce"


def key_of(**parts: Any) -> str:
    """Return the name of an entry made from these, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:40]


def content_of(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Cache:
    """Entries of bytes, or of named arrays.

    Args:
      folder: made when the first entry is written.
      limit: bytes that all entries together may take.
    """

    def __init__(self, folder: str | Path, limit: int = int(LIMIT_GB * 1e9)):
        self.folder, self.limit = Path(folder), limit
        self._silent = False

    def read(self, kind: Kind, key: str) -> bytes | None:
        """Return an entry, or nothing."""
        path = self.folder / kind / key
        try:
            content = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return content

    def write(self, kind: Kind, key: str, content: bytes) -> None:
        """Keep an entry, and drop others if it does not fit beside them; one larger than the bound is not kept."""
        if len(content) > self.limit:
            return
        try:
            write_output(self.folder / kind / key, content)
            self._make_room()
        except OSError as error:
            if not self._silent:
                logging.warning("nothing is kept for later: %s", error)
            self._silent = True

    def read_arrays(self, kind: Kind, key: str) -> dict[str, np.ndarray] | None:
        """Return an entry of arrays, or nothing."""
        content = self.read(kind, key)
        if content is None:
            return None
        try:
            return {name: np.asarray(array) for name, array in load_arrays(content).items()}
        except safetensors.SafetensorError:  # cut off, or no such entry
            return None

    def write_arrays(self, kind: Kind, key: str, arrays: dict[str, Any]) -> None:
        """Keep an entry of arrays."""
        self.write(kind, key, save_arrays(arrays))

    def size(self) -> int:
        """Return the bytes that all entries take."""
        return sum(size for _, size, _ in self._entries())

    def _make_room(self) -> None:
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        for _, size, path in entries:
            if total <= self.limit:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _entries(self) -> list[tuple[int, int, Path]]:
        """List (last used, bytes, path); another process may be deleting."""
        found = []
        for path in (path for kind in get_args(Kind) for path in self.folder.glob(f"{kind}/*")):
            try:
                stat = path.stat()
            except FileNotFoundError:
                continue
            found.append((stat.st_mtime_ns, stat.st_size, path))
        return found
