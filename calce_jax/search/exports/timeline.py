"""Timelines for video editors, by OpenTimelineIO: each moment a clip, one after the other."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from calce_jax.search.exports.text_formats import ExportError, plain
from calce_jax.search.moment import Moment
from calce_jax.storage.extras import extra_remedy
from calce_jax.video.clips import DEFAULT_RATE
from calce_jax.video.decode import open_video

# Frames a second that editors and timecodes know.
EDITING_RATES = (24000 / 1001, 24.0, 25.0, 30000 / 1001, 30.0, 50.0, 60000 / 1001, 60.0)

if TYPE_CHECKING:
    from opentimelineio.schema import Timeline


def to_edl(moments: Sequence[Moment]) -> str:
    """Return a CMX 3600 edit decision list. It has one frame rate: that of the first video.

    Raises:
      ExportError: OpenTimelineIO is not installed, or there is no moment.
    """
    timeline = make_timeline(moments)
    clip: Any = timeline.tracks[0][0]
    return _write(timeline, "cmx_3600", rate=clip.source_range.duration.rate)


def to_fcpxml(moments: Sequence[Moment]) -> str:
    """Return a Final Cut Pro X project; raises as `to_edl` does."""
    return _write(make_timeline(moments), "fcpx_xml")


def to_otio(moments: Sequence[Moment]) -> str:
    """Return an OpenTimelineIO timeline; raises as `to_edl` does."""
    return _write(make_timeline(moments), "otio_json")


def make_timeline(moments: Sequence[Moment]) -> "Timeline":
    """Return a timeline of the moments in their order.

    A clip begins and ends on a frame, in the standard rate that is nearest to the video's.

    Raises:
      ExportError: OpenTimelineIO is not installed, or there is no moment.
      VideoError: a video cannot be read.
    """
    otio = _opentimelineio()
    if not moments:
        raise ExportError("there is no moment to write", "search for something else, or lower --min_score")
    rates = {video: _frame_rate(video) for video in {moment.video for moment in moments}}
    timeline = otio.schema.Timeline(name=plain(" / ".join(dict.fromkeys(moment.query for moment in moments))))
    track = otio.schema.Track(name="moments", kind=otio.schema.TrackKind.Video)
    timeline.tracks.append(track)
    for moment in moments:
        track.append(_clip(moment, rates[moment.video], otio))
    return timeline


def _clip(moment: Moment, rate: float, otio: ModuleType) -> Any:
    def frames(count: int) -> Any:
        return otio.opentime.RationalTime(count, rate)

    first = round(moment.start * rate)
    last = max(round(moment.end * rate), first + 1)
    total = max(round(moment.video_duration * rate), last)
    media = otio.schema.ExternalReference(
        target_url=moment.video.resolve().as_uri(),
        available_range=otio.opentime.TimeRange(frames(0), frames(total)),
    )
    media.name = plain(moment.video.name)
    return otio.schema.Clip(
        name=plain(moment.video.stem),
        media_reference=media,
        source_range=otio.opentime.TimeRange(frames(first), frames(last - first)),
        metadata={"calce": {"query": plain(moment.query), "score": moment.score}},
    )


def _frame_rate(video: Path) -> float:
    with open_video(video, threads=0) as (_, stream):
        rate = stream.average_rate or DEFAULT_RATE
    return min(EDITING_RATES, key=lambda known: abs(known - float(rate)))


def _write(timeline: "Timeline", adapter: str, **options: Any) -> str:
    return _opentimelineio().adapters.write_to_string(timeline, adapter_name=adapter, **options)


def _opentimelineio() -> ModuleType:
    try:
        return importlib.import_module("opentimelineio")
    except ImportError:
        raise ExportError("OpenTimelineIO is not installed", extra_remedy("export")) from None
