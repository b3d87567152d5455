"""A moment: a part of a video that a query describes, as `calce_jax.load(...).search(...)` returns it."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calce_jax.moments.player_time import Seconds, format_time
from calce_jax.search.results import RankedMoment, rank_moments
from calce_jax.search.video_result import QueryResult, UsedCaption, VideoResult
from calce_jax.video.clips import copy_clip, cut_clip, thumbnails_at

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Moment:
    """A part of a video. Times are seconds of a player's clock.

    Attributes:
      video: the file.
      query: the sentence.
      start: first second.
      end: last second.
      score: in [0, 1]; comparable within the videos of one search.
      captions: the captions in the model's prompt that overlap the moment, in order of time.
      frames: seconds of the key frames in the model's prompt that lie in the moment.
      video_duration: length of the video, seconds.
      position: in the ranking of its query over all videos, from 1.
      probability: that it is right, in [0, 1]; None without a calibrated model.
    """

    video: Path
    query: str
    start: Seconds
    end: Seconds
    score: float
    captions: tuple[UsedCaption, ...] = ()
    frames: tuple[float, ...] = ()
    video_duration: float = 0.0
    position: int = 1
    probability: float | None = None

    def __str__(self) -> str:
        return f"{self.video.name}  {format_time(self.start)} - {format_time(self.end)}  {self.score:.3f}  {self.query}"

    def clip(self, path: str | Path, *, copy: bool = False) -> Path:
        """Write the moment as an MP4 and return its path.

        Args:
          path: the new file.
          copy: copy pictures and sound as they are, in a fraction of the time; it then begins at the key frame before
            the start. Otherwise it is encoded anew and exact to the frame.

        Raises:
          VideoError: the video cannot be read, or (`copy`) its codecs do not fit into the file's format.
          OSError: the file cannot be written.
        """
        (copy_clip if copy else cut_clip)(self.video, self.start, self.end, path)
        return Path(path)

    def image(self, second: Seconds | None = None, height: int = 360) -> "Image":
        """Return the picture at a second of the video, by default in the middle of the moment.

        Raises:
          VideoError: the video cannot be read.
        """
        from PIL.Image import open as open_image  # noqa: PLC0415 - of use in Python alone, not for `calce search`

        return open_image(io.BytesIO(self.jpeg(second, height)))

    def jpeg(self, second: Seconds | None = None, height: int = 360) -> bytes:
        """Return the bytes of `image` as a JPEG file."""
        middle = (self.start + self.end) / 2
        return thumbnails_at(self.video, [middle if second is None else second], height)[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values of JSON; times in seconds, rounded to hundredths."""
        return {
            "video": str(self.video),
            "query": self.query,
            "position": self.position,
            "start": round(self.start, 2),
            "end": round(self.end, 2),
            "score": self.score,
            **({} if self.probability is None else {"probability": self.probability}),
            "captions": [
                {"start": round(c.start, 2), "end": round(c.end, 2), "text": c.text, "similarity": c.similarity}
                for c in self.captions
            ],
            "frames": [round(second, 2) for second in self.frames],
        }

    def with_handles(self, seconds: Seconds) -> "Moment":
        """Return the moment with so many seconds more on either side, as far as the video goes."""
        end = self.end + seconds
        if self.video_duration:
            end = max(self.end, min(end, self.video_duration))
        return replace(self, start=max(self.start - seconds, 0.0), end=end)


def ranked_moments(results: Sequence[VideoResult], top: int) -> list[Moment]:
    """Return the moments of each query over all videos, best first, from `break_ties_across_videos`.

    Args:
      results: of the videos, all with the same queries.
      top: maximum number of moments of a query.
    """
    by_video = {result.video: result for result in results}
    return [_moment(by_video[row.video], row) for row in rank_moments(results, top)]


def _moment(result: VideoResult, row: RankedMoment) -> Moment:
    query_result: QueryResult = next(found for found in result.query_results if found.query == row.query)
    start, end = row.moment.start, row.moment.end
    return Moment(
        video=result.video,
        query=row.query,
        start=start,
        end=end,
        score=row.moment.score,
        captions=tuple(c for c in query_result.captions if c.start < end and c.end > start),
        frames=tuple(s for s, treatment in query_result.frames if treatment != "dropped" and start <= s <= end),
        video_duration=result.duration,
        position=row.position,
        probability=row.moment.probability,
    )
