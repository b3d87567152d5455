"""The original's rules for repairing the text of an answer, its oddities included.

Published scores were computed with these rules, so a comparison with them needs the same. By default answers are parsed
by `calce_jax.moments.windows`. All windows are [start, end] in seconds.
"""

import re

Seconds = int | float

_ANSWER_PATTERN = re.compile(r"\[\[.*\],*\]")
_END_OF_ANSWER = "</s>"
_INVALID_SECOND = -1


def looks_like_windows(text: str) -> bool:
    """Whether the first line of the text, up to "</s>", begins with "[[" and has a later "]"."""
    return _ANSWER_PATTERN.match(_until_end(text)) is not None


def repair_windows(text: str, duration: Seconds | None) -> list[list[Seconds]]:
    """Return the windows of an answer in order of their starts, repaired as the original does.

    The text ends at its first "</s>". It is split at every "[" that follows a space; each part gives its first two
    integers. A part with a single integer is completed by the next such part, or by a window that starts later (the end
    is one second before that start), or by the end of the video. Starts are never clipped to the video.

    Args:
      text: the answer.
      duration: seconds; `None` leaves ends unclipped. `None` and 0 drop a single integer that is still incomplete at
        the end.

    Raises:
      ValueError: an end is the duration's digits repeated, such as 150150: removing them leaves no digits.
    """
    if not looks_like_windows(text):
        return [[_INVALID_SECOND, _INVALID_SECOND]] if duration is None else [[0, duration]]
    windows: list[list[Seconds]] = []
    pending: int | None = None
    for part in re.split(r"\s+\[", _until_end(text)):
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
    if pending is not None and duration:
        windows.append([pending, duration])
    # Sorted before the ends are clipped, and again after: windows past the video then all start at its end, and stay
    # in the order of the starts in the text.
    windows.sort(key=_start)
    if duration is None:
        return windows
    return sorted((sorted([start, _clip_end(end, duration)]) for start, end in windows), key=_start)


def _until_end(text: str) -> str:
    return text.partition(_END_OF_ANSWER)[0]


def _start(window: list[Seconds]) -> Seconds:
    return window[0]


def _clip_end(end: Seconds, duration: Seconds) -> Seconds:
    """Return an end within the video, assuming that the model wrote two numbers as one."""
    if end <= duration:
        return end
    digits = str(end)
    if str(duration) in digits:
        return int(digits.replace(str(duration), ""))
    return {4: end % 100, 6: end % 1000}.get(len(digits), duration)
