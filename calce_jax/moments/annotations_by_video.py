"""Annotations that list the queries of each video: one JSON object, with the video's id as the key.

    ActivityNet Captions   {"v_abc": {"duration": 82.7, "timestamps": [[0.8, 19.9], ...], "sentences": [...]}}
    TimeLens-Bench         {"v_abc": {"duration": 82.7, "spans": [[0.8, 19.9], ...], "queries": [...]}}
    TACoS                  {"s13-d21.avi": {"num_frames": 6000, "fps": 29.4, "timestamps": ..., "sentences": ...}}

TACoS counts frames; its windows are divided by the frame rate. A span may also be a list of windows of one query; an
empty one says that the query does not happen.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from calce_jax.moments.json_rows import is_finite_number
from calce_jax.video.files import VIDEO_SUFFIXES

_NAMES = (("sentences", "timestamps"), ("queries", "spans"))


def read_videos(text: str) -> Mapping[str, Any] | None:
    """Return the videos of such a file by id, or None for a file of another format."""
    if not text.lstrip().startswith("{"):
        return None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None  # JSON lines, or nothing that can be read; the reader of lines says what is wrong
    is_by_video = bool(content) and all(isinstance(video, dict) for video in content.values())
    return content if is_by_video else None


def rows_by_video(videos: Mapping[str, Any], stem: str, faults: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a location and a row, in the fields of QVHighlights' release, for each query of `read_videos`.

    Args:
      videos: from `read_videos`.
      stem: of the file's name; queries are numbered with it, "val_1_17", since they have no ids.
      faults: gets a line for every video whose lists do not fit.
    """
    number = 0
    for name, video in videos.items():
        location = f"video {name}"
        sentences, windows = next((names for names in _NAMES if names[0] in video), _NAMES[0])
        texts, spans = video.get(sentences), video.get(windows)
        if not isinstance(texts, list) or not isinstance(spans, list) or len(texts) != len(spans):
            faults.append(
                f"{location}: {sentences} and {windows}: expected two lists of the same length; fix the video"
            )
            continue
        rate, duration = 1.0, video.get("duration")
        if duration is None and "num_frames" in video:
            rate, num_frames = video.get("fps"), video["num_frames"]
            if not (is_finite_number(rate) and rate > 0 and is_finite_number(num_frames)):
                faults.append(
                    f"{location}: fps and num_frames: expected positive numbers; windows are counted in frames"
                )
                continue
            duration = num_frames / rate
        for text, span in zip(texts, spans, strict=True):
            number += 1
            nested = isinstance(span, list) and all(isinstance(window, list) for window in span)
            yield (
                f"{location}, query {number}",
                {
                    "qid": f"{stem}_{number}",
                    "vid": _without_suffix(name),
                    "query": text.strip() if isinstance(text, str) else text,
                    "duration": duration,
                    "relevant_windows": [_to_seconds(window, rate) for window in (span if nested else [span])],
                },
            )


def _to_seconds(window: Any, rate: float) -> Any:
    """Return a window in seconds; what is not a list of numbers is left to the checks of every row."""
    if rate == 1.0 or not isinstance(window, list) or not all(map(is_finite_number, window)):
        return window
    return [position / rate for position in window]


def _without_suffix(name: str) -> str:
    """Return a video's id: TACoS names files."""
    path = PurePath(name)
    return path.stem if path.suffix.lower() in VIDEO_SUFFIXES else name
