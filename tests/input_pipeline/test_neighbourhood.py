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
        (5.0, 12.0, "ends where it begins"),
        (10.0, 18.0, "into"),
        (20.0, 22.0, "inside"),
        (31.0, 40.0, "out of"),
        (32.0, 40.0, "begins where it ends"),
    ],
    is_absent=True,
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


def with_frames_at(times, duration):
    indices = np.arange(len(times), dtype=np.int32)
    return replace(
        EXAMPLE, times=np.array(times, np.float32), indices=indices, total_frames=len(times), duration=duration
    )


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        # Parts of 5 frames: 0 to 17.5 s, 8 to 18, 16 to 18.5, 16.5 to 19, 17 to 19.5, 17.5 to 20.
        ([18.5, 19.9], Neighbourhood([5, 6, 7, 8, 9], 17, 3.0)),
        ([17.5, 18.25], Neighbourhood([3, 4, 5, 6, 7], 16, 3.0)),  # outwards to whole seconds
        ([16.1, 17.9], Neighbourhood([2, 3, 4, 5, 6], 16, 3.0)),
        # Only the first two hold it, the latter just; of the next one it takes more than four fifths.
        ([10, 18], Neighbourhood([1, 2, 3, 4, 5], 8, 10.0)),
        ([9, 18], Neighbourhood([0, 1, 2, 3, 4], 0, 18.0)),
        ([1, 19], None),
    ],
)
def test_frames_may_be_any_time_apart(window, expected):
    dense_at_the_end = with_frames_at([0, 8, 16, 16.5, 17, 17.5, 18, 18.5, 19, 19.5], 20.0)
    assert find_neighbourhood(dense_at_the_end, window, 5, 1) == expected


def test_a_part_always_holds_the_window():
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(300):
        count = int(rng.integers(6, 11))
        times = np.sort(rng.uniform(0, 30, count)).astype(np.float32)
        duration = float(rng.uniform(1, 40))  # as annotated, shorter or longer than the file
        window = np.sort(rng.uniform(0, duration, 2))
        grid = int(rng.integers(1, 5))
        if part := find_neighbourhood(with_frames_at(times, duration), window.tolist(), 5, grid):
            found += 1
            assert len(part.positions) == 5
            assert part.start % grid == 0
            assert part.start <= window[0] < window[1] <= part.start + part.duration <= duration + 1e-9
    assert found > 100


def test_a_video_that_is_annotated_as_shorter_than_it_is():
    """Nothing is asked about what comes after its end, at which no part can begin."""
    longer = with_frames_at(range(0, 20, 2), 1.9)
    assert find_neighbourhood(longer, [0.5, 1.9], 5, 1) == Neighbourhood([0, 1, 2, 3, 4], 0, 1.9)
    assert find_neighbourhood(longer, [0, 1.6], 5, 1) is None


def test_a_first_frame_stands_from_the_beginning_on():
    late = with_frames_at(range(3, 33, 3), 33.0)
    assert find_neighbourhood(late, [0, 4], 5, 1) == Neighbourhood([0, 1, 2, 3, 4], 0, 18.0)


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
