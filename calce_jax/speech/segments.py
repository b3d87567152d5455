"""Splitting a window's tokens into timed segments, and finding where the next window begins."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from calce_jax.speech.mel import FRAMES_PER_SECOND
from calce_jax.speech.special_tokens import TIME_STEP_S
from calce_jax.text.caption import Word

# Mel frames per timestamp token.
FRAMES_PER_STEP = round(TIME_STEP_S * FRAMES_PER_SECOND)


@dataclass(frozen=True)
class Segment:
    """Tokens, timestamps included, with their start and end in seconds of the file; words, once they are aligned."""

    start: float
    end: float
    tokens: tuple[int, ...]
    words: tuple[Word, ...] = ()


def split_segments(
    tokens: Sequence[int], *, timestamp_begin: int, seek: int, num_frames: int
) -> tuple[list[Segment], int]:
    """Split a window's tokens at its timestamps, as OpenAI's Whisper does.

    Two consecutive timestamps end one segment and start the next. Tokens after the last such pair were cut off by the
    end of the window and are left to the next one, unless the text ends with a single timestamp: then nothing is said
    after it.

    Args:
      tokens: of the text, without the prompt and the end token.
      timestamp_begin: the token of timestamp 0.
      seek: mel frame at which the window begins.
      num_frames: number of mel frames of the window that lie in the file.

    Returns:
      The segments, and the number of mel frames (at least 1) by which the next window begins later.
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
    """Return a text's bytes over its zlib-compressed bytes; above 2.4 the text is repetitive."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))
