"""Speech intervals in seconds to a mask of frames; host side."""

import math
from collections.abc import Sequence

import numpy as np

Number = float | int | np.number


def mark_speech_frames(
    intervals: Sequence[Sequence[Number]] | np.ndarray, duration: Number, num_frames: int
) -> np.ndarray:
    """Return which frames have speech.

    As in the original, frame i stands for the i-th of `num_frames` equal parts of the video, whatever its time. A frame
    is marked if an interval overlaps its part, including the part in which the interval ends.

    Args:
      intervals: (start, end) in seconds; what lies outside the video is ignored.
      duration: of the video, in seconds.
      num_frames: number of real frames.

    Returns:
      bool (num_frames,).

    Raises:
      ValueError: the duration is not positive.
    """
    if not duration > 0:
        raise ValueError(f"duration: must be > 0 seconds, got {duration}")
    has_speech = np.zeros(num_frames, bool)
    for interval in intervals:
        # Multiplied first, as in the original: 55 / 150 * 150 is less than 55 in floating point, 55 * 150 / 150 is not.
        start, end = (math.floor(float(second) * num_frames / float(duration)) for second in interval)
        has_speech[max(start, 0) : max(end + 1, 0)] = True
    return has_speech
