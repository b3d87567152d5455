"""From the seconds in which somebody talks to the frames that show it; host side."""

import math
from collections.abc import Sequence

import numpy as np

Number = float | int | np.number


def mark_speech_frames(
    intervals: Sequence[Sequence[Number]] | np.ndarray, duration: Number, num_frames: int
) -> np.ndarray:
    """Mark the frames in which somebody talks.

    The video is taken as `num_frames` equal parts, as the original does, whatever the frames' own times are. Every part
    that an interval touches is marked, the one in which it ends included.

    Args:
      intervals: (start, end) in seconds; parts that lie outside the video are ignored.
      duration: of the video, in seconds.
      num_frames: number of real frames.

    Returns:
      bool (frames,).

    Raises:
      ValueError: if the duration is not positive.
    """
    if not duration > 0:
        raise ValueError(f"duration: {duration} s; spoken frames need the video's length, which is positive")
    has_speech = np.zeros(num_frames, bool)
    for interval in intervals:
        start, end = (math.floor(float(second) / float(duration) * num_frames) for second in interval)
        has_speech[max(start, 0) : max(end + 1, 0)] = True
    return has_speech
