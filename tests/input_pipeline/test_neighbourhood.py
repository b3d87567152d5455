"""Parts of a video around a window, by hand."""

from dataclasses import replace

import numpy as np
import pytest

from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.neighbourhood import Neighbourhood, crop_example, find_neighbourhood

# 40 s in 10 frames, one every 4 s; the model reads 5.
EXAMPLE = Example(
    qid=1,
    video="a",
    video_row=0,
    query="A dog.",
    items=[],
    duration=40.0,
    windows=np.array([[18.0, 22.0]]),
    stage1_windows=np.array([[10.0, 20.0], [30.0, 40.0]]),
    kind=None,
    keyframes=[b""] * 10,
    indices=np.arange(0, 100, 10, dtype=np.int32),
    times=np.arange(0, 40, 4, dtype=np.float32),
    total_frames=100,
    fps=2.5,
    captions=[
        (0.0, 5.0, "before"),
        (10.0, 18.0, "into"),
        (20.0, 22.0, "inside"),
        (31.0, 40.0, "out of"),
        (36.0, 40.0, "x"),
    ],
)


@pytest.mark.parametrize(
    ("window", "grid", "expected"),
    [
        # 20 s are read, from about 10 s on: from the frame at 8 s, and until that at 28 s begins.
        ([18, 22], 1, Neighbourhood([2, 3, 4, 5, 6], 8, 20.0)),
        ([19, 23], 1, Neighbourhood([3, 4, 5, 6, 7], 12, 20.0)),
        ([0, 4], 1, Neighbourhood([0, 1, 2, 3, 4], 0, 20.0)),
        ([36, 40], 1, Neighbourhood([5, 6, 7, 8, 9], 20, 20.0)),
        # Whole multiples of the grid, outwards.
        ([18, 22], 5, Neighbourhood([2, 3, 4, 5, 6], 5, 25.0)),
        ([36, 40], 6, Neighbourhood([5, 6, 7, 8, 9], 18, 22.0)),
        # Four fifths of the part, and more.
        ([12, 28], 1, Neighbourhood([2, 3, 4, 5, 6], 8, 20.0)),
        ([12, 28.1], 1, None),
    ],
)
def test_the_part_around_a_window(window, grid, expected):
    assert find_neighbourhood(EXAMPLE, window, 5, grid) == expected


def test_more_frames_than_twice_may_be_stored():
    """The model reads 2; of the 10 that are stored 4 are evenly spaced, and 2 of these are read."""
    example = replace(EXAMPLE, total_frames=10, indices=np.arange(10, dtype=np.int32))
    assert find_neighbourhood(example, [18, 22], 2, 1) == Neighbourhood([2, 5], 8, 20.0)


def test_a_video_whose_frames_are_all_read_has_no_part():
    short = replace(EXAMPLE, total_frames=5, indices=np.arange(5, dtype=np.int32), times=EXAMPLE.times[:5])
    assert find_neighbourhood(short, [18, 22], 5, 1) is None
    # Of seven frames two are new.
    longer = replace(
        EXAMPLE, total_frames=7, indices=np.arange(7, dtype=np.int32), times=EXAMPLE.times[:7], duration=28.0
    )
    assert find_neighbourhood(longer, [24, 28], 5, 1) == Neighbourhood([2, 3, 4, 5, 6], 8, 20.0)


def test_a_query_about_a_part_is_in_its_seconds():
    cropped = crop_example(EXAMPLE, Neighbourhood([3, 4, 5, 6, 7], 12, 20.0))
    assert (cropped.positions, cropped.duration) == ([3, 4, 5, 6, 7], 20.0)
    np.testing.assert_array_equal(cropped.times[3:8], [0, 4, 8, 12, 16])
    assert cropped.captions == [(0.0, 6.0, "into"), (8.0, 10.0, "inside"), (19.0, 20.0, "out of")]
    assert cropped.stage1_windows is not None
    np.testing.assert_array_equal(cropped.stage1_windows, [[0, 8], [18, 20]])
    assert (len(cropped.windows), cropped.is_absent) == (0, False)
    assert (cropped.keyframes, cropped.total_frames) == (EXAMPLE.keyframes, EXAMPLE.total_frames)
    no_windows = crop_example(replace(EXAMPLE, stage1_windows=None), Neighbourhood([0, 1, 2, 3, 4], 0, 20.0))
    assert no_windows.stage1_windows is None
    outside = crop_example(replace(EXAMPLE, stage1_windows=np.array([[30.0, 40.0]])), Neighbourhood([0], 0, 20.0))
    assert outside.stage1_windows is not None
    assert outside.stage1_windows.shape == (0, 2)
