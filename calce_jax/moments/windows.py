"""Windows [start, end] in seconds: parsing the model's text "[[82, 150]]", overlap and order.

The model may write any text, so by default parsed windows are clipped to the video or dropped, and a status says
whether that happened.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Num

from calce_jax.config import Behaviour
from calce_jax.moments import windows_reference

Seconds = int | float
Window = list[Seconds]
ParseStatus = Literal["exact", "repaired", "empty", "whole_video"]
WindowOrder = Literal["given", "longest", "score"]
WindowSource = Literal["best_beam", "all_beams"]
Decision = Literal["most_probable", "minimum_bayes_risk"]

# Longest first beats the order in time on every published set that has more than one window: docs/ranking.md.
RECOMMENDED_WINDOW_ORDER: WindowOrder = "longest"
SCORE_STEPS = 10_000  # scores that are written have 4 decimals

_PAIR = r"\[\s*(-?[0-9]+(?:\.[0-9]+)?)\s*,\s*(-?[0-9]+(?:\.[0-9]+)?)\s*\]"
_WINDOW_PATTERN = re.compile(_PAIR)
_NOWHERE_PATTERN = re.compile(r"\s*\[\s*\]\s*")
_ANSWER_PATTERN = re.compile(rf"\s*\[\s*{_PAIR}(?:\s*,\s*{_PAIR})*\s*\]\s*")


@dataclasses.dataclass(frozen=True)
class ParsedWindows:
    """Windows parsed from an answer.

    Attributes:
      windows: [start, end] in seconds, in the order of the answer.
      status: "exact", well-formed and used unchanged, also "[]", which has no windows; "repaired", something was
        changed or dropped; "empty", no window could be parsed; "whole_video", the same under "reference", where the
        whole video is the window then.
    """

    windows: list[Window]
    status: ParseStatus

    @property
    def malformed(self) -> bool:
        """Whether the answer could not be used unchanged."""
        return self.status != "exact"

    @property
    def is_answer(self) -> bool:
        """Whether the text says where the query happens, or that it happens nowhere."""
        return bool(self.windows) or self.status == "exact"


def parse_windows(
    text: str,
    duration: Seconds,
    behaviour: Behaviour = "default",
    *,
    meant_seconds: Mapping[int, int] | None = None,
) -> ParsedWindows:
    """Parse the windows of an answer.

    By default every complete pair of numbers in brackets is a window, so a truncated answer keeps its complete
    windows. Windows are clipped to the video and reversed ones swapped; windows without length, outside the video, or
    repeated are dropped. "[]", the answer to a query that does not happen, gives no windows and is exact; other text
    without any window gives none and is "empty". No text raises an error.

    Args:
      text: the answer, e.g. "[[82, 150]]"; decimals are allowed.
      duration: of the video, in seconds.
      behaviour: "reference" repairs the text as the original does (see `calce_jax.moments.windows_reference`):
        malformed text becomes the whole video, and windows may lie outside it.
      meant_seconds: the second that a number means where it does not mean itself, such as 112 by 113 (see
        `calce_jax.text.answer_grammar.find_meant_seconds`); the last second of the video means itself.

    Raises:
      ValueError: `duration` is not a positive number; under "reference" also for answers on which the original stops:
        an end that is the duration's digits repeated, such as 150150.
    """
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration: must be a positive number of seconds, got {duration!r}")
    written_windows = [[_parse_number(start), _parse_number(end)] for start, end in _WINDOW_PATTERN.findall(text)]
    well_formed = _ANSWER_PATTERN.fullmatch(text) is not None
    if behaviour == "reference":
        windows = windows_reference.repair_windows(text, duration)
        if not windows_reference.looks_like_windows(text):
            return ParsedWindows(windows, "whole_video")
        return ParsedWindows(
            windows, _parse_status(windows, exact=well_formed and windows == sorted(written_windows, key=_window_start))
        )
    if meant_seconds:
        written_windows = [
            [
                second if isinstance(second, float) or second == round(duration) else meant_seconds.get(second, second)
                for second in window
            ]
            for window in written_windows
        ]
    if _NOWHERE_PATTERN.fullmatch(text):
        return ParsedWindows([], "exact")
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
    # Through float, because int() refuses text of more than 4300 digits; beyond 2**53 precision does not matter.
    value = float(text)
    return int(value) if "." not in text and math.isfinite(value) else value


def iou(a: Sequence[Seconds], b: Sequence[Seconds]) -> float:
    """Return intersection over union of two windows [start, end, ...]; 0 where both have no length."""
    return float(iou_matrix(np.array([a[:2]], np.float64), np.array([b[:2]], np.float64))[0, 0])


def iou_matrix(
    a: Num[np.ndarray, "*Q N 2"], b: Num[np.ndarray, "*Q M 2"], *, undefined: float = 0.0
) -> Float[np.ndarray, "*Q N M"]:
    """Return intersection over union, float64, of every window of `a` with every window of `b`.

    Args:
      a, b: windows (start, end), the same leading axes.
      undefined: value where neither window has a length, so that the union is 0.
    """
    first, second = np.asarray(a, np.float64)[..., :, None, :], np.asarray(b, np.float64)[..., None, :, :]
    overlap = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    overlap = np.maximum(overlap, 0.0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - overlap
    return np.divide(overlap, union, out=np.where(union == 0, undefined, 0.0), where=union > 0)


def order_windows(
    windows: Sequence[Sequence[Seconds]], scores: Sequence[Seconds] | None = None, window_order: WindowOrder = "given"
) -> list[int]:
    """Return the indices of the windows, best first; ties keep the given order.

    Args:
      windows: [start, end, ...] in seconds.
      scores: one a window; needed where `window_order` is "score".
      window_order: "given" keeps the order; "longest" puts the longest window first, "score" the highest score.

    Raises:
      ValueError: `window_order` is "score" and the scores are missing or not one a window.
    """
    if window_order == "given":
        return list(range(len(windows)))
    if window_order == "longest":
        return sorted(range(len(windows)), key=lambda i: windows[i][0] - windows[i][1])
    if scores is None or len(scores) != len(windows):
        raise ValueError(f"scores: ordering {len(windows)} windows by score needs as many scores, got {scores!r}")
    return sorted(range(len(windows)), key=lambda i: -scores[i])


def falling_scores(scores: Sequence[Seconds]) -> list[float]:
    """Return scores in [0, 1] of 4 decimals that fall strictly along the list, each at or just below the given one.

    Protocols that sort by score, stably or not, then keep the order of the list. A score that is not below the one
    before it becomes the next smaller number; the last of very small ones are raised to stay at least 0.
    """
    falling: list[int] = []  # ten-thousandths, in which steps are exact
    for place, score in enumerate(scores):
        below_previous = falling[-1] - 1 if falling else SCORE_STEPS
        falling.append(max(min(round(score * SCORE_STEPS), below_previous), len(scores) - 1 - place))
    return [steps / SCORE_STEPS for steps in falling]
