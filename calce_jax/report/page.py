"""The report of a run: one self-contained HTML page with the key frames, captions and moments of each query.

The file needs no network: images, style, script and the short videos are embedded. It also has the true windows, tables
of metrics, and filters. `calce_jax.report.search_page` is the page of a search.
"""

import base64
import dataclasses
import io
import itertools
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.moments.metrics.highlights import CLIP_SECONDS
from calce_jax.moments.windows import iou
from calce_jax.report.line_chart import LineChart, chart_values
from calce_jax.storage.atomic_files import write_atomic

Seconds = int | float

TREATMENT_LABELS: dict[Treatment, str] = {
    "full": "kept at full detail",
    "compressed": "compressed",
    "dropped": "dropped",
}
THUMBNAIL_HEIGHT = 112
_TICK_STEPS = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600)
_MAX_TICKS = 10


@dataclasses.dataclass(frozen=True)
class FrameView:
    """A key frame: its time in seconds, its JPEG bytes, and its treatment in the stage's prompt."""

    second: Seconds
    jpeg: bytes
    treatment: Treatment


@dataclasses.dataclass(frozen=True)
class MomentView:
    """A window in seconds; `score` in [0, 1] is that of the model, None for a true window."""

    start: Seconds
    end: Seconds
    score: Seconds | None = None


@dataclasses.dataclass(frozen=True)
class CaptionView:
    """A caption in seconds; its cosine similarity to the query, None if unknown; whether it is in the prompt."""

    start: Seconds
    end: Seconds
    text: str
    similarity: Seconds | None
    used: bool


@dataclasses.dataclass(frozen=True)
class StageView:
    """One stage: its key frames in order of time, its moments best first, and the text that T5 generated.

    Attributes:
      is_absent: the answer is that the query does not happen.
      saliency: of each clip of two seconds, at most about 1; empty if it is not shown.
    """

    frames: Sequence[FrameView]
    moments: Sequence[MomentView]
    raw_text: str
    is_absent: bool = False
    saliency: Sequence[float] = ()


@dataclasses.dataclass(frozen=True)
class QueryView:
    """One query with the results of all stages.

    Attributes:
      qid: id of the query.
      video: id of the video.
      query: the sentence.
      kind: what the query refers to, e.g. "visual", "caption", "several"; "" if unknown.
      duration: of the video, in seconds.
      truth: the true windows; None if unknown, empty if the query does not happen.
      stages: by name, in the order they ran.
      captions: of the video, in order of time.
      video_src: URL of the video, relative to the page, or a data: URI (`video_data_uri`); None for no player.
    """

    qid: str | int
    video: str
    query: str
    kind: str
    duration: Seconds
    truth: Sequence[MomentView] | None
    stages: Mapping[str, StageView]
    captions: Sequence[CaptionView] = ()
    video_src: str | None = None


@dataclasses.dataclass(frozen=True)
class SummaryTable:
    """A table of metrics: each row has a name and one number in percent per column, None if undefined."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Seconds | None]]]
    note: str = ""


def write_page(
    path: str | Path,
    title: str,
    queries: Sequence[QueryView],
    summary: Sequence[SummaryTable] = (),
    *,
    subtitle: str = "",
    charts: Sequence[LineChart] = (),
) -> None:
    """Write the page.

    Args:
      path: the HTML file.
      title: the heading.
      queries: in their initial order on the page.
      summary: tables at the top; may be empty.
      subtitle: a line below the heading, e.g. the configuration and the date.
      charts: below the tables; one without points is left out.

    Raises:
      ValueError: a frame is not an image.
      OSError: the file cannot be written.
    """
    write_atomic(path, render_page(title, queries, summary, subtitle=subtitle, charts=charts))


def render_page(
    title: str,
    queries: Sequence[QueryView],
    summary: Sequence[SummaryTable] = (),
    *,
    subtitle: str = "",
    charts: Sequence[LineChart] = (),
) -> str:
    """Return the page's HTML; arguments as in `write_page`."""
    environment = make_environment()
    environment.filters["seconds"] = _format_seconds
    images = _Images()
    videos = list(dict.fromkeys(query.video_src for query in queries if query.video_src))
    cards = [_card(number, query, images, videos) for number, query in enumerate(queries)]
    return environment.get_template("page.html").render(
        title=title,
        about=subtitle,
        summary=summary,
        charts=[values for chart in charts if (values := chart_values(chart))],
        queries=cards,
        kinds=sorted({query.kind for query in queries if query.kind}),
        stages=list(dict.fromkeys(name for query in queries for name in query.stages)),
        has_truth=any(query.truth for query in queries),
        treatments=TREATMENT_LABELS,
        images=images.uris,
        videos=videos,
    )


def make_environment() -> jinja2.Environment:
    """Return the Jinja environment of the templates: values are escaped, an undefined name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("calce_jax.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def video_data_uri(path: str | Path) -> str:
    """Return a video file as a data: URI for `QueryView.video_src`; the page embeds equal URIs once.

    Raises:
      OSError: the file cannot be read.
    """
    mime_type = mimetypes.guess_type(path)[0] or "video/mp4"
    return f"data:{mime_type};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


class _Images:
    """The thumbnails of a page, as data: URIs without duplicates."""

    def __init__(self):
        self.uris: list[str] = []
        self._index_by_jpeg: dict[bytes, int] = {}

    def add(self, jpeg: bytes) -> int:
        """Return the index of an image's thumbnail in `uris`."""
        if jpeg not in self._index_by_jpeg:
            self._index_by_jpeg[jpeg] = len(self.uris)
            self.uris.append("data:image/jpeg;base64," + base64.b64encode(_thumbnail(jpeg)).decode())
        return self._index_by_jpeg[jpeg]


def _thumbnail(jpeg: bytes) -> bytes:
    try:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    except OSError as error:
        raise ValueError(f"a frame of {len(jpeg)} bytes is not an image ({error}); pass JPEG files") from error
    image.thumbnail((4 * THUMBNAIL_HEIGHT, THUMBNAIL_HEIGHT))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=72, optimize=True)
    return buffer.getvalue()


def _card(number: int, query: QueryView, images: _Images, videos: Sequence[str]) -> dict[str, Any]:
    """Return the template's values for one query; positions on the time axis are in percent of the duration."""
    truth = query.truth or []
    stages = []
    for name, stage in query.stages.items():
        overlaps = [_best_iou(moment, truth) for moment in stage.moments]
        stages.append(
            {
                "name": name,
                "frames": _strip(stage.frames, query.duration, images),
                "moments": [
                    {**_bar(moment, query.duration), "score": moment.score, "iou": overlap}
                    for moment, overlap in zip(stage.moments, overlaps, strict=True)
                ],
                "raw_text": stage.raw_text,
                "is_absent": stage.is_absent,
                "curve": curve_points(stage.saliency, query.duration),
                "iou": (overlaps[0] if overlaps else 0.0) if truth else None,
            }
        )
    return {
        "number": number,
        "view": query,
        "video": videos.index(query.video_src) if query.video_src else None,
        "truth": [_bar(moment, query.duration) for moment in truth],
        "stages": stages,
        "iou": stages[-1]["iou"] if stages else None,
        "captions": [{**_bar(caption, query.duration), "view": caption} for caption in query.captions],
        "used_captions": sum(caption.used for caption in query.captions),
        "ticks": [{"second": tick, "left": axis_percent(tick, query.duration)} for tick in ticks(query.duration)],
    }


def _best_iou(moment: MomentView, truth: Iterable[MomentView]) -> float:
    return max((iou([moment.start, moment.end], [true.start, true.end]) for true in truth), default=0.0)


def _bar(span: MomentView | CaptionView, duration: Seconds) -> dict[str, Any]:
    left, right = axis_percent(span.start, duration), axis_percent(span.end, duration)
    return {"start": span.start, "end": span.end, "left": left, "width": round(right - left, 3)}


def axis_percent(second: Seconds, duration: Seconds) -> float:
    """Return the position of a time on an axis from 0 to `duration`, in percent, clipped to [0, 100]."""
    return round(100 * min(max(second / duration, 0.0), 1.0), 3)


def curve_points(saliency: Sequence[float], duration: Seconds) -> str:
    """Return the points of an SVG polygon, the area below the saliency of clips; "" if there are none.

    The time axis is 100 wide; a saliency of 1 is at the top, y = 0, and one of 0 or less at the bottom, y = 1.
    """
    middles = [axis_percent((number + 0.5) * CLIP_SECONDS, duration) for number in range(len(saliency))]
    heights = [round(1 - min(max(value, 0), 1), 3) for value in saliency]
    points = [(middle, height) for middle, height in zip(middles, heights, strict=True)]
    if not points:
        return ""
    corners = [(0, 1), (0, heights[0]), *points, (100, heights[-1]), (100, 1)]
    return " ".join(f"{x:g},{y:g}" for x, y in corners)


def _strip(frames: Sequence[FrameView], duration: Seconds, images: _Images) -> list[dict[str, Any]]:
    """Return the template's values for a row of frames; each one extends to the time of the next."""
    ends = [*(frame.second for frame in frames[1:]), duration]
    return [
        {
            "image": images.add(frame.jpeg),
            "treatment": frame.treatment,
            "second": frame.second,
            "left": axis_percent(frame.second, duration),
            "width": round(axis_percent(end, duration) - axis_percent(frame.second, duration), 3),
        }
        for frame, end in zip(frames, ends, strict=True)
    ]


def ticks(duration: Seconds) -> list[int]:
    """Return whole seconds to mark on an axis from 0 to `duration`: at most ten steps of a round number of seconds."""
    step = next((step for step in _TICK_STEPS if duration / step <= _MAX_TICKS), _TICK_STEPS[-1])
    return list(itertools.takewhile(lambda tick: tick <= duration, itertools.count(0, step)))


def _format_seconds(value: Seconds) -> str:
    return f"{np.round(value, 1):g}"
