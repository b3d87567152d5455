"""What a visitor may ask for and keep: the limits, and the check of the bytes and files on disk against them."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from calce_jax.errors import UserError
from calce_jax.search.web.visitors import ResultStore


@dataclass(frozen=True)
class Limits:
    """Limits of one visitor, and of all together.

    Attributes:
      megabytes: of a video.
      minutes: of a video.
      keep_minutes: time after which uploads and results are removed.
      visitor_megabytes: of a visitor's uploads and results together.
      visitor_uploads: files that a visitor may keep.
      total_megabytes: of the uploads and results of all visitors.
    """

    megabytes: float = 500.0
    minutes: float = 10.0
    keep_minutes: float = 60.0
    visitor_megabytes: float = 2000.0
    visitor_uploads: int = 20
    total_megabytes: float = 20_000.0


class QuotaError(UserError):
    """Something cannot be kept; the message names the limit and the remedy."""


class Quota:
    """Checks what is kept, and what is being uploaded, against the limits.

    Args:
      uploads: one folder an upload.
      results: one folder a search.
      limits: in force.
    """

    def __init__(self, uploads: ResultStore, results: ResultStore, limits: Limits):
        self._uploads, self._results, self._limits = uploads, results, limits
        self._arriving: list[tuple[str, int]] = []  # visitor and bytes of every upload that is on its way
        self._lock = threading.Lock()

    def check(self, visitor: str) -> None:
        """Refuse when a visitor, or all visitors together, keep more than the limits allow.

        Raises:
          QuotaError: they do.
        """
        limits = self._limits
        own = self._bytes(visitor)
        if own > limits.visitor_megabytes * 1e6:
            raise QuotaError(
                f"your uploads and results would be {own / 1e6:,.0f} MB, and {limits.visitor_megabytes:,.0f} MB are "
                "the limit",
                f"each is removed {limits.keep_minutes:g} minutes after it was made: try again later",
            )
        if self._bytes(None) > limits.total_megabytes * 1e6:
            raise QuotaError(
                "this app has no room left",
                "uploads and results are removed "
                f"{limits.keep_minutes:g} minutes after they were made: try again later",
            )

    @contextmanager
    def reserve(self, visitor: str, size: int) -> Iterator[None]:
        """Count so many bytes as the visitor's while an upload arrives.

        Raises:
          QuotaError: the visitor has too many uploads, or the bytes are more than the limits leave.
        """
        entry = (visitor, size)
        with self._lock:
            number = len(self._uploads.kept(visitor)) + sum(owner == visitor for owner, _ in self._arriving)
            if number >= self._limits.visitor_uploads:
                raise QuotaError(
                    f"you keep {number} uploads, and {self._limits.visitor_uploads} are the limit",
                    "each is removed "
                    f"after {self._limits.keep_minutes:g} minutes: search those you have, or try again later",
                )
            self._arriving.append(entry)
        try:
            self.check(visitor)
            yield
        finally:
            with self._lock:
                self._arriving.remove(entry)

    def _bytes(self, visitor: str | None) -> int:
        """Return the bytes that a visitor keeps or uploads, or all visitors where none is named."""
        with self._lock:
            arriving = sum(size for owner, size in self._arriving if visitor in (None, owner))
        return arriving + bytes_in([*self._uploads.kept(visitor), *self._results.kept(visitor)])


def bytes_in(folders: Iterable[Path]) -> int:
    """Return the bytes of all files in some folders; a file with several names (hard links) counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):  # removed since it was listed
                    status = os.lstat(os.path.join(root, name))
                    sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
