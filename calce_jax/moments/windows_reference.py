"""How the original mends the text of an answer, its oddities included.

Published scores went through these rules, so a comparison with them has to as well; everything else reads answers with
`calce_jax.moments.windows`. All windows are [start, end] in seconds.
"""

import ast
import re

import numpy as np

Seconds = int | float

_ANSWER = re.compile(r"\[\[.*\],*\]")
_LITERAL = re.compile(r"\[\[.*\]\]")
_INVALID = -1


def looks_like_windows(text: str) -> bool:
    """Whether the text begins as a list of lists does; all that follows its first line is ignored in this test."""
    return _ANSWER.match(text) is not None


def mend(text: str, duration: Seconds | None) -> list[list[Seconds]]:
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
        return [[_INVALID, _INVALID]] if duration is None else [[0, duration]]
    windows: list[list[Seconds]] = []
    alone: int | None = None
    for piece in re.split(r"\s+\[", text):
        numbers = [int(digits) for digits in re.findall(r"\d+", piece)]
        if len(numbers) == 1:
            if alone is None:
                alone = numbers[0]
            else:
                windows.append(sorted([alone, numbers[0]]))
                alone = None
        elif numbers:
            start, end = sorted(numbers[:2])
            if alone is not None and start > alone:
                windows.append([alone, start - 1])
                alone = None
            windows.append([start, end])
    if duration is None:
        return sorted(windows, key=lambda window: window[0])
    if alone is not None:
        windows.append([alone, duration])
    return sorted((sorted([start, _limit(end, duration)]) for start, end in windows), key=lambda window: window[0])


def _limit(end: Seconds, duration: Seconds) -> Seconds:
    """Bring an end that lies past the video back, on the guess that the model wrote two numbers as one."""
    if end <= duration:
        return end
    digits = str(end)
    if str(duration) in digits:
        return int(digits.replace(str(duration), ""))
    return {4: end % 100, 6: end % 1000}.get(len(digits), duration)


def read_literal(text: str) -> list:
    """Return the windows of text that is a Python list of pairs; whatever is no pair becomes [-1, -1].

    Raises:
      TypeError: a bare number stands among the windows.
    """
    invalid = [_INVALID, _INVALID]
    if not _LITERAL.match(text):
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
    truth = read_literal(truth) if isinstance(truth, str) else truth
    covered = np.zeros((2, frames + 1), bool)
    for row, windows in zip(covered, (truth, predicted), strict=True):
        for start, end in windows:
            row[int(start) : int(end)] = True
    either = np.count_nonzero(covered.any(axis=0))
    return np.count_nonzero(covered.all(axis=0)) / either if either else float("nan")
