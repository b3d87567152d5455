"""From the seconds in which somebody talks to the frames that show it; host side."""

from collections.abc import Sequence

import numpy as np


def spoken_frames(intervals: Sequence[Sequence[float]], duration: float, frames: int) -> np.ndarray:
    """Mark the frames in which somebody talks.

    The video is taken as `frames` equal parts, as the original does, whatever the frames' own times are. Every part
    that an interval touches is marked, the one in which it ends included.

    Args:
      intervals: (start, end) in seconds; parts that lie outside the video are ignored.
      duration: of the video, in seconds.
      frames: number of real frames.

    Returns:
      bool (frames,).

    Raises:
      ValueError: if the duration is not positive.
    """
    if not duration > 0:
        raise ValueError(f"duration: {duration} s; spoken frames need the video's length, which is positive")
    spoken = np.zeros(frames, bool)
    for start, end in intervals:
        spoken[max(int(start / duration * frames), 0) : max(int(end / duration * frames) + 1, 0)] = True
    return spoken
