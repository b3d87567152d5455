"""The report of a run: one self-contained HTML page with the key frames, captions and moments of each query.

The file needs no network: images, style, script and the short videos are embedded. It also has the true windows, tables
of metrics, and filters. `calce_jax.report.search_page` is the page of a search.
"""

import base64
import dataclasses
import io
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.moments.windows import iou
from calce_jax.report.line_chart import LineChart, chart_values
from calce_jax.report.page_parts import TREATMENT_LABELS, axis_percent, curve_points, make_environment, ticks
from calce_jax.storage.atomic_files import write_atomic

Seconds = int | float

THUMBNAIL_HEIGHT = 112


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


def _format_seconds(value: Seconds) -> str:
    return f"{np.round(value, 1):g}"
