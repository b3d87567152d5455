"""Windows: "[[82, 150]]" as text and as numbers, their overlap and their order.

A window is [start, end] in seconds of the video. The model writes windows as text, and a language model may write
anything: what is read back here lies inside the video, or is left out, and the reader says which.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from calce_jax.config import Behaviour
from calce_jax.moments import windows_reference

Seconds = int | float
Window = list[Seconds]
ParseStatus = Literal["exact", "repaired", "empty", "whole_video"]
WindowOrder = Literal["given", "longest", "score"]

# Longest first beats the order in time on every published set that has more than one window: docs/ranking.md.
RECOMMENDED_WINDOW_ORDER: WindowOrder = "longest"

_PAIR = r"\[\s*(-?[0-9]+(?:\.[0-9]+)?)\s*,\s*(-?[0-9]+(?:\.[0-9]+)?)\s*\]"
_WINDOW_PATTERN = re.compile(_PAIR)
_ANSWER_PATTERN = re.compile(rf"\s*\[\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*\]\s*")


@dataclasses.dataclass(frozen=True)
class ParsedWindows:
    """What an answer said.

    Attributes:
      windows: [start, end] in seconds, in the order of the answer.
      status: "exact", well-formed and used as it stands; "repaired", something was mended or dropped; "empty", no
        window could be read; "whole_video", the same under the reference rules, which then answer with all of it.
    """

    windows: list[Window]
    status: ParseStatus

    @property
    def malformed(self) -> bool:
        """Whether the answer could not be used as it stands."""
        return self.status != "exact"


def format_windows(windows: Sequence[Sequence[Seconds]]) -> str:
    """Return the text the model learns to write: "[[82, 150], [3, 9.5]]", the `str` of a list of lists."""
    return str([list(window) for window in windows])


def parse_windows(text: str, duration: Seconds, behaviour: Behaviour = "default") -> ParsedWindows:
    """Read the windows of an answer.

    By default every complete pair of numbers in brackets counts, so an answer that was cut off keeps its complete
    windows. Ends outside the video are moved to its border, reversed windows are turned; windows without length,
    outside the video, or said twice are dropped. Nothing readable gives no windows. No text makes it fail.

    Args:
      text: the answer, e.g. "[[82, 150]]"; decimals are allowed.
      duration: the video's length in seconds.
      behaviour: "reference" mends the text as the original does (see `calce_jax.moments.windows_reference`): unreadable text
        becomes the whole video, and windows may lie outside it.

    Raises:
      ValueError: `duration` is not a positive number; under "reference" also for the answers on which the original
        stops: an end that is the duration's digits repeated, such as 150150.
    """
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"a video's duration must be a positive number of seconds, not {duration!r}")
    written_windows = [[_parse_number(start), _parse_number(end)] for start, end in _WINDOW_PATTERN.findall(text)]
    well_formed = _ANSWER_PATTERN.fullmatch(text) is not None
    if behaviour == "reference":
        windows = windows_reference.repair_windows(text, duration)
        if not windows_reference.looks_like_windows(text):
            return ParsedWindows(windows, "whole_video")
        return ParsedWindows(
            windows, _parse_status(windows, exact=well_formed and windows == sorted(written_windows, key=_window_start))
        )
    windows: list[Window] = []
    for window in written_windows:
        start, end = (min(max(second, 0), duration) for second in sorted(window))
        if start < end and [start, end] not in windows:
            windows.append([start, end])
    return ParsedWindows(windows, _parse_status(windows, exact=well_formed and windows == written_windows))


def _parse_status(windows: list[Window], *, exact: bool) -> ParseStatus:
    if not windows:
        return "empty"
    return "exact" if exact else "repaired"


def _window_start(window: Sequence[Seconds]) -> Seconds:
    return window[0]


def _parse_number(text: str) -> Seconds:
    # Through float, because int() refuses texts of some thousand digits; past 2**53 the digits do not matter.
    value = float(text)
    return int(value) if "." not in text and math.isfinite(value) else value


def iou(a: Sequence[Seconds], b: Sequence[Seconds]) -> float:
    """Return intersection over union of two windows [start, end]; 0 where both have no length."""
    return float(iou_matrix(np.array([a[:2]], np.float64), np.array([b[:2]], np.float64))[0, 0])


def iou_matrix(a: Num[np.ndarray, "N 2"], b: Num[np.ndarray, "M 2"]) -> Float[np.ndarray, "N M"]:
    """Return intersection over union of every window of `a` with every window of `b`; 0 where both have no length."""
    first, second = np.asarray(a, np.float64)[:, None, :], np.asarray(b, np.float64)[None, :, :]
    overlap = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - overlap
    return np.divide(overlap, union, out=np.zeros_like(overlap), where=union > 0)


def merge_overlapping(windows: Sequence[Sequence[Seconds]]) -> list[Window]:
    """Return the windows in order of time, those that overlap or touch joined into one."""
    merged: list[Window] = []
    for start, end in sorted(list(window[:2]) for window in windows):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def order_windows(
    windows: Sequence[Sequence[Seconds]], scores: Sequence[Seconds] | None = None, window_order: WindowOrder = "given"
) -> list[int]:
    """Return the indices of the windows, best first; ties keep the given order.

    Args:
      windows: [start, end, ...] in seconds.
      scores: one a window; needed where `window_order` is "score".
      window_order: "given" leaves the order as it is; "longest" puts the longest window first; "score" the highest score.

    Raises:
      ValueError: `window_order` is "score" and the scores are missing or not one a window.
    """
    if window_order == "given":
        return list(range(len(windows)))
    if window_order == "longest":
        return sorted(range(len(windows)), key=lambda i: windows[i][0] - windows[i][1])
    if scores is None or len(scores) != len(windows):
        raise ValueError(f"ranking {len(windows)} windows by score needs as many scores, got {scores!r}")
    return sorted(range(len(windows)), key=lambda i: -scores[i])
