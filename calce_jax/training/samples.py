"""A picture of one evaluated query for TensorBoard: its frames, and below them the true and the predicted windows."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

BAR = 6  # height in pixels of a row of windows
TRUE, PREDICTED, EMPTY = (40, 160, 70), (230, 120, 20), (225, 225, 225)


def strip(
    frames: UInt8[np.ndarray, "T H W 3"],
    duration: int | float,
    true: Sequence[Sequence[int | float]],
    predicted: Sequence[Sequence[int | float]],
    *,
    shown: int = 12,
) -> UInt8[np.ndarray, "Y X 3"]:
    """Draw frames in a row over two bars that span the video: the upper is the truth, the lower the prediction.

    Args:
      frames: RGB, spread evenly over the video.
      duration: of the video, in seconds.
      true: windows [start, end], in seconds.
      predicted: likewise; what follows the end (a score) is not drawn.
      shown: at most this many frames are drawn, evenly spread.
    """
    chosen = frames[np.linspace(0, len(frames) - 1, min(shown, len(frames))).round().astype(int)]
    picture = np.concatenate(list(chosen), axis=1)
    bars = [
        _bar(windows, duration, picture.shape[1], colour) for windows, colour in ((true, TRUE), (predicted, PREDICTED))
    ]
    return np.concatenate([picture, *bars], axis=0)


def _bar(
    windows: Sequence[Sequence[int | float]], duration: int | float, width: int, colour: tuple[int, int, int]
) -> UInt8[np.ndarray, "Y X 3"]:
    bar = np.full((BAR, width, 3), EMPTY, np.uint8)
    bar[0] = 255
    for start, end, *_ in windows:
        left, right = (round(min(max(second / duration, 0.0), 1.0) * width) for second in (start, end))
        bar[1:, left : max(right, left + 1)] = colour
    return bar
