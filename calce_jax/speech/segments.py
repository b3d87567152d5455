"""From tokens with times to segments, and to where the next window begins."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from calce_jax.speech.mel import FRAMES_PER_S
from calce_jax.speech.special_tokens import TIME_STEP_S

# Mel frames between two times that can be written.
FRAMES_PER_STEP = round(TIME_STEP_S * FRAMES_PER_S)


@dataclass(frozen=True)
class Segment:
    """A sentence or so: when, in seconds of the file, and its tokens, times included."""

    start: float
    end: float
    tokens: tuple[int, ...]


def cut(tokens: Sequence[int], *, time: int, seek: int, frames: int) -> tuple[list[Segment], int]:
    """Cut a window's text at its times.

    Where two times meet, a segment ends and the next begins. What follows the last such place was cut off by the
    window's end, and is left to the next window, unless the text ends with a single time: then nothing follows it.

    Args:
      tokens: of the text, without prompt and end.
      time: the token of time 0.
      seek: mel frame at which the window begins.
      frames: of the window that are the file's.

    Returns:
      The segments, and how many frames later the next window begins; never 0.
    """
    is_time = [token >= time for token in tokens]
    meet = [n for n in range(1, len(tokens)) if is_time[n - 1] and is_time[n]]
    finished = is_time[-2:] == [False, True]
    offset = seek / FRAMES_PER_S

    def second(token: int) -> float:
        return offset + (token - time) * TIME_STEP_S

    if not meet:
        end = frames // FRAMES_PER_STEP * TIME_STEP_S
        times = [token for token in tokens if token >= time]
        if times and times[-1] > time:
            end = (times[-1] - time) * TIME_STEP_S
        return [Segment(offset, offset + end, tuple(tokens))], frames
    bounds = [0, *meet, *([len(tokens)] if finished else [])]
    segments = []
    for first, last in pairwise(bounds):
        part = tokens[first:last]
        segments.append(Segment(second(part[0]), second(part[-1]), tuple(part)))
    if finished:
        return segments, frames
    step = (tokens[meet[-1] - 1] - time) * FRAMES_PER_STEP
    return segments, step if step > 0 else frames


def repetitiveness(text: str) -> float:
    """Return how much smaller a text becomes when compressed: above 2.4 it says the same over and over."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))
