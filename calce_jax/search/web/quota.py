"""Limits of the web app: the settings, and the check of files on disk against them."""

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
    """Limits of the web app.

    Attributes:
      max_megabytes: size of a video.
      max_minutes: length of a video.
      retention_minutes: time after which uploads and results are deleted.
      max_visitor_megabytes: uploads and results of one visitor together.
      max_visitor_uploads: number of uploads of one visitor.
      max_total_megabytes: uploads and results of all visitors together.
    """

    max_megabytes: float = 500.0
    max_minutes: float = 10.0
    retention_minutes: float = 60.0
    max_visitor_megabytes: float = 2000.0
    max_visitor_uploads: int = 20
    max_total_megabytes: float = 20_000.0


class QuotaError(UserError):
    """An upload or a result exceeds a limit."""


class Quota:
    """Checks stored files and uploads in progress against the limits; thread-safe.

    Args:
      uploads: store of the uploads.
      results: store of the search results.
      limits: the settings.
    """

    def __init__(self, uploads: ResultStore, results: ResultStore, limits: Limits):
        self._uploads, self._results, self._limits = uploads, results, limits
        self._in_progress: list[tuple[str, int]] = []  # (visitor, bytes) of every upload in progress
        self._lock = threading.Lock()

    def check(self, visitor: str) -> None:
        """Check the bytes of a visitor and of all visitors.

        Raises:
          QuotaError: one of them exceeds its limit.
        """
        limits = self._limits
        visitor_bytes = self._bytes(visitor)
        if visitor_bytes > limits.max_visitor_megabytes * 1e6:
            raise QuotaError(
                f"your uploads and results would take {visitor_bytes / 1e6:,.1f} MB, the limit is "
                f"{limits.max_visitor_megabytes:,.0f} MB",
                f"try again later; files are deleted after {limits.retention_minutes:g} minutes",
            )
        if self._bytes(None) > limits.max_total_megabytes * 1e6:
            raise QuotaError(
                "the disk space of this app is used up",
                f"try again later; files are deleted after {limits.retention_minutes:g} minutes",
            )

    @contextmanager
    def reserve(self, visitor: str, size: int) -> Iterator[None]:
        """Count `size` bytes for a visitor during an upload.

        Raises:
          QuotaError: the visitor has too many uploads, or the bytes would exceed a limit.
        """
        entry = (visitor, size)
        with self._lock:
            number = len(self._uploads.folders(visitor)) + sum(owner == visitor for owner, _ in self._in_progress)
            if number >= self._limits.max_visitor_uploads:
                raise QuotaError(
                    f"you have {number} uploads, the limit is {self._limits.max_visitor_uploads}",
                    "search those, or try again later; files are deleted after "
                    f"{self._limits.retention_minutes:g} minutes",
                )
            self._in_progress.append(entry)
        try:
            self.check(visitor)
            yield
        finally:
            with self._lock:
                self._in_progress.remove(entry)

    def _bytes(self, visitor: str | None) -> int:
        """Return the stored bytes of a visitor and those being uploaded; of all visitors for None."""
        with self._lock:
            in_progress = sum(size for owner, size in self._in_progress if visitor in (None, owner))
        return in_progress + total_bytes([*self._uploads.folders(visitor), *self._results.folders(visitor)])


def total_bytes(folders: Iterable[Path]) -> int:
    """Return the bytes of all files below some folders; several hard links to one file count once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                with suppress(FileNotFoundError):  # deleted in the meantime
                    status = os.lstat(os.path.join(root, name))
                    sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())
