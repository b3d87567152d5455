"""A part of a video, read as a video of its own: as many frames as of the whole, closer together.

The tables hold twice the frames that the model reads, of which the whole video has every other one. A part has
consecutive ones: half of the video, with a frame at each of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import overload

import numpy as np

from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.rows import stored_frame_positions
from calce_jax.moments.windows import Seconds

RATE = 2
# A window that takes more of the part has too little around it for its borders to be seen.
MAX_SHARE = 0.8


@dataclass(frozen=True)
class Neighbourhood:
    """The part of a video around a window.

    Fields:
      positions: of its frames among those stored.
      start: in the video, seconds; a multiple of the grid of the windows.
      duration: seconds.
    """

    positions: list[int]
    start: int
    duration: float


def find_neighbourhood(example: Example, window: Sequence[Seconds], frames: int, grid: int) -> Neighbourhood | None:
    """Return the part of a video around a window, or None where nothing more could be seen.

    That is a video of which the model reads every frame, or a window that no part has enough around. Frames may be
    any time apart: of all parts of `frames` consecutive ones it is that whose middle is nearest to the window's.

    Args:
      example: with `RATE * frames` evenly spaced frames, or all of a shorter video.
      window: start and end in seconds.
      frames: that the model reads.
      grid: seconds, at whose multiples windows begin and end.

    Raises:
      InputError: the frames are not stored.
    """
    positions = stored_frame_positions(example.total_frames, example.indices, RATE * frames)
    if len(positions) <= frames:
        return None
    times, duration = np.asarray(example.times, np.float64)[positions], example.duration
    # The first frame stands from the beginning on; each until the next one, and the last until the end of the video.
    firsts = np.concatenate([[0.0], times[1 : len(times) - frames + 1]])
    ends = np.minimum(np.append(times[frames:], duration), duration)
    starts_on_grid, ends_on_grid = firsts // grid * grid, np.minimum(-(-ends // grid) * grid, duration)
    holds_window = (starts_on_grid <= window[0]) & (window[1] <= ends_on_grid)
    is_wide_enough = window[1] - window[0] <= MAX_SHARE * (ends - firsts)
    distances = np.abs(firsts + ends - (window[0] + window[1]))
    distances[~(holds_window & is_wide_enough)] = np.inf
    first = int(distances.argmin())
    if np.isinf(distances[first]):
        return None
    start = int(starts_on_grid[first])
    return Neighbourhood(positions[first : first + frames], start, float(ends_on_grid[first]) - start)


def crop_example(example: Example, part: Neighbourhood) -> Example:
    """Return a query about a part of its video; times are those of the part, and nothing is known of true windows."""
    end = part.start + part.duration
    captions = [
        (max(first - part.start, 0.0), min(last, end) - part.start, text)
        for first, last, text in example.captions
        if first < end and last > part.start
    ]
    windows = example.stage1_windows
    if windows is not None:
        windows = np.clip(windows - part.start, 0, part.duration)
        windows = windows[windows[:, 0] < windows[:, 1]]
    return replace(
        example,
        positions=part.positions,
        times=example.times - np.float32(part.start),
        duration=part.duration,
        captions=captions,
        windows=np.zeros((0, 2)),
        is_absent=False,
        stage1_windows=windows,
    )


class NeighbourhoodDataset(Sequence[Example]):
    """Queries of a split, each about a part of its video.

    Args:
      dataset: the split.
      parts: by rows of the split, in the order of this dataset.
    """

    def __init__(self, dataset: MomentDataset, parts: dict[int, Neighbourhood]):
        self._dataset, self._rows, self._parts = dataset, list(parts), list(parts.values())

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        """Read a query, or those of a slice."""
        if isinstance(index, slice):
            return [self[row] for row in range(len(self))[index]]
        return crop_example(self._dataset[self._rows[index]], self._parts[index])
