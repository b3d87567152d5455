"""From tokens with times to segments, and to where the next window begins."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from calce_jax.speech.mel import FRAMES_PER_SECOND
from calce_jax.speech.special_tokens import TIME_STEP_S

# Mel frames between two times that can be written.
FRAMES_PER_STEP = round(TIME_STEP_S * FRAMES_PER_SECOND)


@dataclass(frozen=True)
class Segment:
    """A sentence or so: when, in seconds of the file, and its tokens, times included."""

    start: float
    end: float
    tokens: tuple[int, ...]


def split_segments(
    tokens: Sequence[int], *, timestamp_begin: int, seek: int, num_frames: int
) -> tuple[list[Segment], int]:
    """Cut a window's text at its times.

    Where two times meet, a segment ends and the next begins. What follows the last such place was cut off by the
    window's end, and is left to the next window, unless the text ends with a single time: then nothing follows it.

    Args:
      tokens: of the text, without prompt and end.
      timestamp_begin: the token of time 0.
      seek: mel frame at which the window begins.
      num_frames: of the window that are the file's.

    Returns:
      The segments, and how many frames later the next window begins; never 0.
    """
    is_timestamp = [token >= timestamp_begin for token in tokens]
    boundaries = [n for n in range(1, len(tokens)) if is_timestamp[n - 1] and is_timestamp[n]]
    single_timestamp_ending = is_timestamp[-2:] == [False, True]
    offset = seek / FRAMES_PER_SECOND

    def second(token: int) -> float:
        return offset + (token - timestamp_begin) * TIME_STEP_S

    if not boundaries:
        end = num_frames // FRAMES_PER_STEP * TIME_STEP_S
        timestamps = [token for token in tokens if token >= timestamp_begin]
        if timestamps and timestamps[-1] > timestamp_begin:
            end = (timestamps[-1] - timestamp_begin) * TIME_STEP_S
        return [Segment(offset, offset + end, tuple(tokens))], num_frames
    bounds = [0, *boundaries, *([len(tokens)] if single_timestamp_ending else [])]
    segments = []
    for first, last in pairwise(bounds):
        segment_tokens = tokens[first:last]
        segments.append(Segment(second(segment_tokens[0]), second(segment_tokens[-1]), tuple(segment_tokens)))
    if single_timestamp_ending:
        return segments, num_frames
    num_advanced = (tokens[boundaries[-1] - 1] - timestamp_begin) * FRAMES_PER_STEP
    return segments, num_advanced if num_advanced > 0 else num_frames


def compression_ratio(text: str) -> float:
    """Return how much smaller a text becomes when compressed: above 2.4 it says the same over and over."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))
