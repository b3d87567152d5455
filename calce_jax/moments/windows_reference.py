"""How the original mends the text of an answer, its oddities included.

Published scores went through these rules, so a comparison with them has to as well; everything else reads answers with
`calce_jax.moments.windows`. All windows are [start, end] in seconds.
"""

import ast
import re

import numpy as np

Seconds = int | float

_ANSWER_PATTERN = re.compile(r"\[\[.*\],*\]")
_LITERAL_PATTERN = re.compile(r"\[\[.*\]\]")
_INVALID_SECOND = -1


def looks_like_windows(text: str) -> bool:
    """Whether the text begins as a list of lists does; all that follows its first line is ignored in this test."""
    return _ANSWER_PATTERN.match(text) is not None


def repair_windows(text: str, duration: Seconds | None) -> list[list[Seconds]]:
    """Return the windows of an answer in order of their starts, mended as the original does.

    The text is cut at every bracket that follows a space; each piece gives its first two whole numbers. A number that
    stands alone waits for the next one that stands alone, or for a window that starts later (and then ends a second
    before it), or for the end of the video. Starts are never limited to the video.

    Args:
      text: the answer.
      duration: seconds; `None` leaves ends as they are and drops a number that is still alone at the end.

    Raises:
      ValueError: an end consists of the duration's digits repeated, such as 150150, and nothing is left of it.
    """
    if not looks_like_windows(text):
        return [[_INVALID_SECOND, _INVALID_SECOND]] if duration is None else [[0, duration]]
    windows: list[list[Seconds]] = []
    pending: int | None = None
    for part in re.split(r"\s+\[", text):
        numbers = [int(digits) for digits in re.findall(r"\d+", part)]
        if len(numbers) == 1:
            if pending is None:
                pending = numbers[0]
            else:
                windows.append(sorted([pending, numbers[0]]))
                pending = None
        elif numbers:
            start, end = sorted(numbers[:2])
            if pending is not None and start > pending:
                windows.append([pending, start - 1])
                pending = None
            windows.append([start, end])
    if duration is None:
        return sorted(windows, key=lambda window: window[0])
    if pending is not None:
        windows.append([pending, duration])
    return sorted((sorted([start, _clip_end(end, duration)]) for start, end in windows), key=lambda window: window[0])


def _clip_end(end: Seconds, duration: Seconds) -> Seconds:
    """Bring an end that lies past the video back, on the guess that the model wrote two numbers as one."""
    if end <= duration:
        return end
    digits = str(end)
    if str(duration) in digits:
        return int(digits.replace(str(duration), ""))
    return {4: end % 100, 6: end % 1000}.get(len(digits), duration)


def parse_literal(text: str) -> list:
    """Return the windows of text that is a Python list of pairs; whatever is no pair becomes [-1, -1].

    Raises:
      TypeError: a bare number stands among the windows.
    """
    invalid = [_INVALID_SECOND, _INVALID_SECOND]
    if not _LITERAL_PATTERN.match(text):
        return [invalid]
    try:
        value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return [invalid]
    if not isinstance(value, list):
        return [invalid]
    return [window if len(window) == 2 else list(invalid) for window in value]


def frame_iou(truth: str | list, predicted: list, frames: int) -> float:
    """Return the overlap that the original prints while training: of whole seconds, windows cut off at `frames`.

    Args:
      truth: windows, or their text.
      predicted: windows.
      frames: the last second that counts.

    Returns:
      Seconds in both over seconds in either; NaN where neither has any.
    """
    truth = parse_literal(truth) if isinstance(truth, str) else truth
    covered = np.zeros((2, frames + 1), bool)
    for second_mask, windows in zip(covered, (truth, predicted), strict=True):
        for start, end in windows:
            second_mask[int(start) : int(end)] = True
    union = np.count_nonzero(covered.any(axis=0))
    return np.count_nonzero(covered.all(axis=0)) / union if union else float("nan")
