"""What a search writes: the page with its videos and clips, and the formats of other programs."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from calce_jax.search.moment_list import MomentList
from calce_jax.search.reporter import Reporter
from calce_jax.search.results import GroundTruth, write_results
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.file_names import single_line


def write_output(
    out: Path,
    moments: MomentList,
    reporter: Reporter,
    *,
    max_moments: int,
    formats: Sequence[str] = (),
    clips: bool = False,
    handles: float = 0.0,
    truth: GroundTruth | None = None,
    notice: str = "",
    cache: DiskCache | None = None,
) -> list[Path]:
    """Write the results of a search; what cannot be written is reported.

    Args:
      out: the folder, from `calce_jax.search.results.ensure_writable`.
      moments: with the results that they were found with.
      reporter: gets the errors.
      max_moments: length of the ranking of a query at the top of the page.
      formats: keys of `calce_jax.search.moment_list.EXPORTS`.
      clips: also write each moment as an mp4.
      handles: seconds more on either side, in clips and formats.
      truth: true windows to show on the page.
      notice: why the answers may be meaningless, shown above them.
      cache: of thumbnails.

    Returns:
      The files of `formats`.

    Raises:
      OSError: moments.json or the page cannot be written.
    """
    failures = write_results(
        out,
        moments.results,
        max_moments=max_moments,
        clips=clips,
        truth=truth,
        notice=notice,
        handles=handles,
        cache=cache,
    )
    for failure in failures:
        reporter.error(f"{single_line(failure.video)}: {failure.reason}; {failure.remedy}".removesuffix("; "))
    widened = moments.with_handles(handles)
    return list(chain(*(reporter.attempt(widened.export, out, [name]) or [] for name in formats)))
