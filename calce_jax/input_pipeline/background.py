"""Another video behind the windows of a row: its frames and captions replace those outside the windows.

The other video is looped or cut to the length of the row's own: second t shows its second t modulo its duration.

Dimensions: T frames of a row, F frames of the other video, W windows.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from calce_jax.input_pipeline.example import Example

FrameSource = tuple[Example, int]  # a stored frame: its video, and its position among the stored frames
CaptionTuple = tuple[float, float, str]


@dataclass(frozen=True)
class Background:
    """Frames that replace some of those of a row.

    Fields:
      example: about the other video.
      frame_index: for each frame of the row the position of a stored frame of the other video, -1 where it stays.
    """

    example: Example
    frame_index: Int[np.ndarray, " T"]

    def replace(self, sources: Sequence[FrameSource]) -> list[FrameSource]:
        """Return the frames of a row with those that are replaced."""
        return [
            own if position < 0 else (self.example, int(position))
            for own, position in zip(sources, self.frame_index, strict=True)
        ]


def background_frames(
    times: Float[np.ndarray, " T"],
    windows: Float[np.ndarray, "W 2"],
    other_times: Float[np.ndarray, " F"],
    other_duration: float,
) -> Int[np.ndarray, " T"] | None:
    """Return for each frame of a row the nearest frame of the other video, -1 for frames in a window.

    Args:
      times: of the frames of the row, seconds.
      windows: of the row, seconds; a frame at the end of a window is in it.
      other_times: of the frames of the other video, seconds.
      other_duration: of the other video, seconds.

    Returns:
      None where a window has no frame, so that only its background would be left, or where all frames are in windows.
    """
    in_windows = (windows[:, :1] <= times) & (times <= windows[:, 1:])
    stays = in_windows.any(axis=0)
    if not in_windows.any(axis=1).all() or stays.all():
        return None
    distances = np.abs(other_times[None, :] - (times % other_duration)[:, None])
    return np.where(stays, -1, distances.argmin(axis=1))


def mix_captions(
    own: Sequence[CaptionTuple],
    windows: Float[np.ndarray, "W 2"],
    duration: float,
    other: Sequence[CaptionTuple],
    other_duration: float,
) -> list[CaptionTuple]:
    """Return the captions of a mixed row, by time: the own ones that overlap a window, and others that overlap none.

    Args:
      own, other: (start, end, text) of both videos, seconds; a caption is kept or dropped as a whole.
      windows: of the row, seconds.
      duration, other_duration: of both videos, seconds.
    """

    def overlaps(start: float, end: float) -> bool:
        return any(start < window_end and end > window_start for window_start, window_end in windows.tolist())

    mixed = [caption for caption in own if overlaps(*caption[:2])]
    for shift in itertools.takewhile(lambda shift: shift < duration, itertools.count(0.0, other_duration)):
        for start, end, text in other:
            first, last = start + shift, min(end + shift, duration)
            if start < other_duration and first < last and not overlaps(first, last):
                mixed.append((first, last, text))
    return sorted(mixed, key=lambda caption: caption[:2])
