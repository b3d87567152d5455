"""Two answers made into one, by hand."""

from dataclasses import replace

import pytest

from calce_jax.moments.predictions import Prediction
from calce_jax.moments.second_look import pool_looks

FIRST = Prediction(
    1, "q", "v", [[10, 20, 0.9]], "[[10, 20]]", "repaired", 40, beams=[(0.6, [[10, 20]]), (0.2, [[0, 8]])]
)
SECOND = Prediction(1, "q", "v", [[4, 10, 1]], "[[4, 10]]", "exact", 20, beams=[(0.9, [[4, 10]]), (0.1, [])])


def pool(first=FIRST, second=SECOND, **options):
    return pool_looks(first, second, 8, **{"window_order": "longest", "window_source": "all_beams"} | options)


def test_beams_of_both_looks_have_half_of_the_weight_each():
    """In seconds of the video the second says [12, 18], which overlaps [10, 20] by 0.6."""
    moments = pool()
    assert [(beam.windows, pytest.approx(beam.probability)) for beam in moments.hypotheses] == [
        ([[12, 18]], 0.45),
        ([[10, 20]], 0.375),  # the first look's readable beams have 0.8
        ([[0, 8]], 0.125),
        ([], 0.05),
    ]
    assert [window[:2] for window in moments.windows] == [[12, 18]]
    assert moments.support == [pytest.approx(0.45 + 0.375 * 0.6, abs=1e-4)]
    assert [window[:2] for window in moments.other_windows] == [[10, 20], [0, 8]]
    assert (moments.text, moments.status, moments.is_absent) == ("[[12, 18]]", "repaired", False)
    assert pool(window_source="best_beam").other_windows == []


def test_a_second_look_that_finds_nothing_counts_against_it():
    nothing = Prediction(1, "q", "v", [], "[]", "exact", 20, beams=[(1.0, [])])
    moments = pool(second=nothing)
    assert (moments.windows, moments.text, moments.is_absent) == ([], "[]", True)
    assert moments.presence == pytest.approx(0.375)
    # One that cannot be read does not.
    unreadable = Prediction(1, "q", "v", [], "what", "empty", 20, beams=[])
    moments = pool(second=unreadable)
    assert [window[:2] for window in moments.windows] == [[10, 20]]
    assert not moments.is_absent


def test_neither_look_finds_anything_that_can_be_read():
    nothing = replace(FIRST, windows=[], text="what", status="empty", beams=[])
    moments = pool(nothing, replace(SECOND, beams=[]))
    assert (moments.windows, moments.text, moments.is_absent) == ([], "[]", False)


def test_windows_are_in_the_configured_order():
    several = [[2, 4], [10, 20], [30, 35]]
    first = replace(FIRST, beams=[(0.9, several), (0.1, [[30, 35]])])
    second = replace(SECOND, beams=[])
    assert [w[:2] for w in pool(first, second, window_order="longest").windows] == [[10, 20], [30, 35], [2, 4]]
    assert [w[:2] for w in pool(first, second, window_order="given").windows] == several


def test_the_end_of_the_video_is_one_number():
    duration = 301 / 9
    first = replace(FIRST, duration=duration, beams=[(1.0, [[20, duration]])])
    moments = pool(first, replace(SECOND, duration=duration - 8, beams=[(1.0, [[12, duration - 8]])]))
    assert [window[:2] for window in [*moments.windows, *moments.other_windows]] == [[20, duration]]


def test_beams_of_no_probability_decide_nothing():
    first = replace(FIRST, beams=[(0.0, [[10, 20]]), (0.0, [[0, 8]])])
    moments = pool(first)
    assert [beam.probability for beam in moments.hypotheses] == [pytest.approx(0.45), pytest.approx(0.05), 0.0, 0.0]
    assert [window[:2] for window in moments.windows] == [[12, 18]]
    # However small, they have half of the weight together.
    tiny = replace(FIRST, beams=[(3e-9, [[10, 20]]), (1e-9, [[0, 8]])])
    assert [beam.probability for beam in pool(tiny).hypotheses] == pytest.approx([0.45, 0.375, 0.125, 0.05])


def test_what_a_look_must_have():
    with pytest.raises(ValueError, match="query 1 was made without beams"):
        pool(second=replace(SECOND, beams=None))
