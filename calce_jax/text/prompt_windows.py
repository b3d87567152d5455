"""Windows as the numbers that prompts and labels are written from."""

from collections.abc import Sequence

import numpy as np

from calce_jax.config import Behaviour
from calce_jax.text.caption import Number
from calce_jax.text.text_row import RowFlag, Windows


def to_lists(windows: Windows) -> list[list[int | float]]:
    """Return windows as lists of ints or floats; an array of whole seconds gives ints, as in the annotations."""
    if not isinstance(windows, np.ndarray):
        return [[n if isinstance(n, int | float) else float(n) for n in window] for window in windows]
    all_integers = bool((windows == np.round(windows)).all())
    return windows.astype(np.int64 if all_integers else np.float64).tolist()


def whole_seconds(window: Sequence[Number]) -> tuple[int, int]:
    """Return a window rounded to whole seconds; if that would be empty, the enclosing seconds."""
    start, end = (float(second) for second in window)
    first, last = round(start), round(end)
    return (first, last) if first < last else (int(np.floor(start)), max(int(np.ceil(end)), int(np.floor(start)) + 1))


def check_windows(
    windows: list[list[int | float]], duration: Number, behaviour: Behaviour
) -> tuple[list[list[int | float]], RowFlag]:
    """Return true windows, by default clipped to the video (in place), and flags.

    Raises:
      ValueError: a window is reversed, begins before 0, or begins after the video.
    """
    row_flags = RowFlag(0)
    for window in windows:
        if len(window) != 2 or not 0 <= window[0] <= window[1]:
            raise ValueError(
                f"window {window}: must be [start, end] in seconds with 0 <= start <= end; correct the annotation"
            )
        if window[0] >= duration:
            raise ValueError(
                f"window {window}: lies outside the video of {duration} s; correct the annotation, "
                "or prepare the whole video"
            )
        if window[1] > duration and behaviour == "default":
            window[1] = float(duration)
            row_flags |= RowFlag.TRUE_WINDOW_CLIPPED
    return windows, row_flags
