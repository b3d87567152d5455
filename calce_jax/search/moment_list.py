"""The moments that a search has found: a list that prints as a table, and writes the formats of other programs."""

import base64
from collections.abc import Iterable, Sequence
from pathlib import Path

from calce_jax.moments.player_time import Seconds, format_time
from calce_jax.report.page_parts import make_environment
from calce_jax.search.exports import text_formats, timeline
from calce_jax.search.moment import Moment
from calce_jax.search.results import unique_names, write_results
from calce_jax.search.video_result import VideoResult
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.failures import Failure
from calce_jax.storage.file_names import single_line

# By name: the suffix of the file, and whether a file is for one video alone.
EXPORTS = {
    "csv": ("csv", False),
    "edl": ("edl", False),
    "fcpxml": ("fcpxml", False),
    "otio": ("otio", False),
    "vtt": ("vtt", True),
    "chapters": ("chapters.txt", True),
}
THUMBNAIL_HEIGHT = 72  # pixels, in a notebook


class MomentList(list[Moment]):
    """Moments, those of each query best first.

    Args:
      moments: the moments.
      queries: all queries of the search, also those for which nothing was found.
      results: what the moments were found with, for `page`.
      failures: the videos that could not be searched.
      notice: why the answers may be meaningless, for people.
      min_score: moments with a lower score were left out.
      threshold: of a query whose best moment in a video had a lower score, all were.
    """

    def __init__(
        self,
        moments: Iterable[Moment] = (),
        *,
        queries: Sequence[str] = (),
        results: Sequence[VideoResult] = (),
        failures: Sequence[Failure] = (),
        notice: str = "",
        min_score: Seconds | None = None,
        threshold: float = 0.0,
    ) -> None:
        super().__init__(moments)
        self.queries = list(queries) or list(dict.fromkeys(moment.query for moment in self))
        self.results, self.failures, self.notice = list(results), list(failures), notice
        self.min_score, self.threshold = min_score, threshold

    def __str__(self) -> str:
        return self.to_table()

    def _repr_html_(self) -> str:
        rows = [(moment, base64.b64encode(moment.jpeg(height=THUMBNAIL_HEIGHT)).decode()) for moment in self]
        environment = make_environment()
        environment.filters["clock"] = format_time
        return environment.get_template("moments.html").render(queries=self.queries, rows=rows, absence=self.absence)

    def absence(self, query: str) -> str:
        """Return what is said of a query without a moment."""
        if self.min_score is not None:
            return f"probably not in these videos: no moment scores {self.min_score:g} or more"
        found = (result for video in self.results for result in video.query_results if result.query == query)
        scores = [result.absence_score for result in found if result.absence_score is not None]
        if not scores:
            return "no moment found"
        return (
            f"probably not in these videos: the best moment scores {max(scores):.3f}, and 95 % of sentences "
            f"that do happen score {self.threshold:.3f} or more; a minimum score of 0 shows it"
        )

    def to_table(self, *, seconds: bool = False) -> str:
        """Return a table of the moments of each query.

        Args:
          seconds: times as numbers of seconds instead of minutes and seconds.
        """
        shown = "{:.2f}".format if seconds else format_time
        rows = [(single_line(m.video.name), shown(m.start), shown(m.end), f"{m.score:.3f}", m.query) for m in self]
        widths = [
            max(len(title), *(len(row[n]) for row in rows), 0) for n, title in enumerate(("file", "start", "end"))
        ]
        lines = []
        for query in self.queries:
            found = [row for row in rows if row[4] == query]
            lines += ["", query]
            if not found:
                lines.append(f"  {self.absence(query)}")
                continue
            lines.append(_line("file", "start", "end", "score", widths))
            lines += [_line(*row[:4], widths) for row in found]
        return "\n".join([*lines[1:], ""])

    def with_handles(self, seconds: Seconds) -> "MomentList":
        """Return the moments with so many seconds more on either side, as far as their videos go."""
        widened = [moment.with_handles(seconds) for moment in self]
        return MomentList(
            widened,
            queries=self.queries,
            results=self.results,
            failures=self.failures,
            notice=self.notice,
            min_score=self.min_score,
            threshold=self.threshold,
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """Return a JSON list of `Moment.to_dict`; like all formats also written to `path` if that is given."""
        return _write(text_formats.to_json(self), path)

    def to_csv(self, path: str | Path | None = None) -> str:
        """Return a table with a header: query, position, video, start, end (seconds), start_time, end_time, score."""
        return _write(text_formats.to_csv(self), path)

    def to_vtt(self, path: str | Path | None = None) -> str:
        """Return WebVTT with a cue for each moment, to show over the video.

        Raises:
          ExportError: the moments are of several videos.
        """
        return _write(text_formats.to_vtt(self), path)

    def to_chapters(self, path: str | Path | None = None) -> str:
        """Return chapters in ffmpeg's metadata format, one for each moment; a chapter ends where the next begins.

        Raises:
          ExportError: the moments are of several videos.
        """
        return _write(text_formats.to_chapters(self), path)

    def to_edl(self, path: str | Path | None = None) -> str:
        """Return a CMX 3600 edit decision list; needs the extra `[export]`, as the next two do.

        Raises:
          ExportError: OpenTimelineIO is not installed.
        """
        return _write(timeline.to_edl(self), path)

    def to_fcpxml(self, path: str | Path | None = None) -> str:
        """Return a Final Cut Pro X project."""
        return _write(timeline.to_fcpxml(self), path)

    def to_otio(self, path: str | Path | None = None) -> str:
        """Return an OpenTimelineIO timeline."""
        return _write(timeline.to_otio(self), path)

    def export(self, folder: str | Path, formats: Sequence[str]) -> list[Path]:
        """Write `moments.<suffix>` for each format, or `moments_<video>.<suffix>` where a format is for one video:
        a file named as the video would be taken for its captions.

        Args:
          folder: must exist.
          formats: keys of `EXPORTS`.

        Returns:
          The files.

        Raises:
          ExportError: OpenTimelineIO, which a format needs, is not installed, or there is no moment to write.
          OSError: a file cannot be written.
        """
        written = []
        for name in formats:
            suffix, is_for_one_video = EXPORTS[name]
            if not is_for_one_video:
                written.append(Path(folder) / f"moments.{suffix}")
                getattr(self, f"to_{name}")(written[-1])
                continue
            videos = list(dict.fromkeys(moment.video for moment in self))
            for video, file_name in zip(videos, unique_names(videos), strict=True):
                written.append(Path(folder) / f"moments_{Path(file_name).stem}.{suffix}")
                getattr(MomentList(m for m in self if m.video == video), f"to_{name}")(written[-1])
        return written

    def page(self, folder: str | Path, *, clips: bool = False) -> Path:
        """Write the page that plays the moments, and return the path of its index.html.

        Args:
          folder: see `calce_jax.search.results`.
          clips: also write every moment as an mp4.

        Raises:
          OSError: it cannot be written.
        """
        top = max((m.position for m in self), default=1)
        failures = write_results(folder, self.results, max_moments=top, clips=clips, notice=self.notice)
        self.failures += failures
        return Path(folder) / "index.html"


def _line(file: str, start: str, end: str, score: str, widths: Sequence[int]) -> str:
    return f"  {file:<{widths[0]}}  {start:>{widths[1]}}  {end:>{widths[2]}}  {score}"


def _write(text: str, path: str | Path | None) -> str:
    if path is not None:
        write_atomic(Path(path), text)
    return text
