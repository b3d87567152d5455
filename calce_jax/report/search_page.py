"""The page of a search: the ranked moments beside a player, then, folded away, how they were found.

A moment can be dropped or its times set, by hand or from the player, and the kept ones be saved as CSV or JSON.

One HTML file beside a folder of videos; it needs no network. If the browser cannot play a video, the page shows its
thumbnails instead.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.moments.player_time import format_time
from calce_jax.report.page_parts import TREATMENT_LABELS, axis_percent, curve_points, make_environment, ticks
from calce_jax.storage.atomic_files import write_atomic

Seconds = int | float


@dataclass(frozen=True)
class BarView:
    """A bar on the timeline, in seconds: a moment or a caption.

    Attributes:
      start, end: seconds.
      score: of a moment; of a caption its similarity.
      clip: URL of the clip of a moment.
      text: of a caption.
      probability: that a moment is right; None if it is not known.
    """

    start: Seconds
    end: Seconds
    score: Seconds
    clip: str = ""
    text: str = ""
    probability: float | None = None


@dataclass(frozen=True)
class PictureView:
    """A thumbnail of the video: its time in seconds, and its JPEG bytes."""

    second: Seconds
    jpeg: bytes


@dataclass(frozen=True)
class QueryResultView:
    """The results of one query in one video.

    Attributes:
      query: the sentence.
      stages: the moments by stage, best first.
      captions: the captions in the prompts.
      treatments: of the key frame nearest to each picture of the video.
      truth: the true windows (start, end) in seconds; empty if unknown.
      absence_score: the best score, if it is too low for the query to happen in the video.
      saliency: of each clip of two seconds, at most about 1; empty if it is not known.
    """

    query: str
    stages: Mapping[str, Sequence[BarView]]
    captions: Sequence[BarView]
    treatments: Sequence[Treatment]
    truth: Sequence[tuple[Seconds, Seconds]] = ()
    absence_score: float | None = None
    saliency: Sequence[float] = ()


@dataclass(frozen=True)
class VideoView:
    """A video: its name, its URL relative to the page, its duration in seconds, its thumbnails, a result per query."""

    name: str
    address: str
    duration: Seconds
    pictures: Sequence[PictureView]
    query_results: Sequence[QueryResultView]


def write_search_page(path: str | Path, videos: Sequence[VideoView], *, max_moments: int, notice: str = "") -> None:
    """Write the page.

    Args:
      path: the HTML file.
      videos: at least one, all with the same queries.
      max_moments: length of the ranking of a query.
      notice: why the answers may be meaningless; shown above them, and bars then have no colour.

    Raises:
      OSError: the file cannot be written.
    """
    write_atomic(path, render_search_page(videos, max_moments=max_moments, notice=notice))


def render_search_page(videos: Sequence[VideoView], *, max_moments: int, notice: str = "") -> str:
    """Return the page's HTML; arguments as in `write_search_page`."""
    environment = make_environment()
    environment.filters |= {"clock": format_time, "jpeg": _data_uri, "link": quote}
    return environment.get_template("search.html").render(
        title=f"Moments in {videos[0].name}" if len(videos) == 1 else f"Moments in {len(videos)} videos",
        notice=notice,
        videos=[_card(number, video) for number, video in enumerate(videos)],
        rankings=_rankings(videos, max_moments),
        stages=list(videos[0].query_results[0].stages),
        treatments=TREATMENT_LABELS,
        has_truth=any(query_result.truth for video in videos for query_result in video.query_results),
    )


def _data_uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()


def _rankings(videos: Sequence[VideoView], max_moments: int) -> list[dict[str, Any]]:
    """Return the template's values for the ranking of each query: the moments of the last stage in all videos."""
    rankings = []
    for number, query_result in enumerate(videos[0].query_results):
        rows = [
            {"card": card, "video": video.name, "bar": bar, "picture": _picture_class(card, video, bar)}
            for card, video in enumerate(videos)
            for bar in list(video.query_results[number].stages.values())[-1]
        ]
        rows.sort(key=lambda row: -row["bar"].score)
        absence_scores = [video.query_results[number].absence_score for video in videos]
        rankings.append(
            {
                "query": query_result.query,
                "rows": rows[:max_moments],
                "more": max(len(rows) - max_moments, 0),
                "absence_score": max((score for score in absence_scores if score is not None), default=None),
            }
        )
    return rankings


def _picture_class(card: int, video: VideoView, bar: BarView) -> str:
    """Return the CSS class of the thumbnail that is nearest to the middle of a moment."""
    if not video.pictures:
        return ""
    middle = (bar.start + bar.end) / 2
    nearest = min(range(len(video.pictures)), key=lambda n: abs(video.pictures[n].second - middle))
    return f"p{card}-{nearest}"


def _card(number: int, video: VideoView) -> dict[str, Any]:
    """Return the template's values for one video; positions on the time axis are in percent of the duration."""
    width = 100 / max(len(video.pictures), 1)
    return {
        "number": number,
        "view": video,
        "ticks": [(tick, axis_percent(tick, video.duration)) for tick in ticks(video.duration)],
        "pictures": [(picture, n * width, width) for n, picture in enumerate(video.pictures)],
        "findings": [
            {
                "view": query_result,
                "stages": {
                    name: [_bar(bar, video.duration) for bar in bars] for name, bars in query_result.stages.items()
                },
                "truth": [_bar(BarView(*window, 1), video.duration) for window in query_result.truth],
                "captions": [_bar(bar, video.duration) for bar in query_result.captions],
                "curve": curve_points(query_result.saliency, video.duration),
            }
            for query_result in video.query_results
        ],
    }


def _bar(bar: BarView, duration: Seconds) -> dict[str, Any]:
    left, right = axis_percent(bar.start, duration), axis_percent(bar.end, duration)
    return {"view": bar, "left": left, "width": round(right - left, 3)}
