"""Scores of windows: their expected overlap with the windows of all answers."""

import math

import numpy as np
import pytest

from calce_jax.moments.metrics.pairing import EvalCase
from calce_jax.moments.metrics.protocols import official_scores, reference_scores
from calce_jax.moments.scoring import BeamHypothesis, expected_iou, score_moments
from calce_jax.moments.windows import falling_scores


def test_a_window_that_every_answer_has_scores_one():
    moments = score_moments(["[[2, 8]]", "[[2, 8], [20, 30]]"], [-0.1, -3.0], 40, window_order="score")
    assert moments.windows == [[2.0, 8.0, 1.0]]
    assert moments.status == "exact"


def test_the_expected_overlap_weighs_answers_by_probability():
    beams = [BeamHypothesis([[0, 10]], 4 / 7), BeamHypothesis([[0, 5]], 2 / 7), BeamHypothesis([], 1 / 7)]
    moments = expected_iou(np.array([[0.0, 10.0], [20.0, 30.0]]), beams)
    np.testing.assert_allclose(moments, [4 / 7 + 2 / 7 * 0.5, 0.0], rtol=1e-12)


def test_all_answers_are_kept_with_their_share():
    moments = score_moments(["[[2, 8]]", "[["], [math.log(0.3), math.log(0.1)], 40, window_order="score")
    assert [beam.windows for beam in moments.hypotheses] == [[[2, 8]], []]
    assert [beam.probability for beam in moments.hypotheses] == pytest.approx([0.75, 0.25])


def test_order_of_windows():
    texts, probabilities = ["[[0, 4], [10, 20]]", "[[0, 4]]"], [-0.5, -0.6]
    starts = {
        order: [w[0] for w in score_moments(texts, probabilities, 40, window_order=order).windows]
        for order in ("given", "longest", "score")
    }
    assert starts == {"given": [0, 10], "longest": [10, 0], "score": [0, 10]}


def test_scores_fall_along_the_order_and_support_is_kept():
    """The longest window is only in the first answer, and would be second by its support."""
    texts, probabilities = ["[[0, 4], [10, 20], [30, 34]]", "[[0, 4], [30, 34]]"], [math.log(0.6), math.log(0.4)]
    moments = score_moments(texts, probabilities, 40, window_order="longest")
    assert moments.windows == [[10, 20, 0.6], [0, 4, 0.5999], [30, 34, 0.5998]]
    assert moments.support == [0.6, 1.0, 1.0]
    best_first = score_moments(texts, probabilities, 40, window_order="score")
    assert best_first.windows == [[0, 4, 1.0], [30, 34, 0.9999], [10, 20, 0.6]]
    given = score_moments(texts, probabilities, 40, window_order="longest", behaviour="reference")
    assert given.windows == [[0, 4, 1.0], [10, 20, 0.6], [30, 34, 0.5999]]


def test_windows_of_the_other_beams_come_after_those_of_the_answer():
    texts = ["[[0, 4], [10, 20]]", "[[0, 4], [30, 40]]", "[[0, 5], [10, 20]]"]
    shares = [math.log(0.5), math.log(0.3), math.log(0.2)]
    best = score_moments(texts, shares, 40, window_order="longest")
    assert (best.other_windows, best.other_support) == ([], [])
    listed = score_moments(texts, shares, 40, window_order="longest", window_source="all_beams")
    assert (
        (listed.windows, listed.support)
        == (best.windows, best.support)
        == (
            [[10, 20, 0.7], [0, 4, 0.6999]],
            [0.7, 0.96],
        )
    )
    # [0, 5] overlaps a window of every beam: 0.8 of it in two beams.
    assert listed.other_windows == [[0, 5, 0.6998], [30, 40, 0.3]]
    assert listed.other_support == [0.84, 0.3]
    reference = score_moments(
        texts, shares, 40, window_order="longest", window_source="all_beams", behaviour="reference"
    )
    assert reference.other_windows == []


def test_listed_windows_never_lower_a_score():
    """Windows behind the others can hit what these have missed, and change nothing before them."""
    rng = np.random.default_rng(0)
    cases: dict[str, list[EvalCase]] = {"best_beam": [], "all_beams": []}
    for query in range(200):
        texts = [str([sorted(pair) for pair in rng.integers(0, 12, (rng.integers(1, 4), 2)).tolist()]) for _ in "12345"]
        truth = [[start, start + 3] for start in rng.integers(0, 9, 2).tolist()]
        for source, listed in cases.items():
            moments = score_moments(
                texts, sorted(-rng.random(5))[::-1], 12, window_order="longest", window_source=source
            )
            listed.append(EvalCase(query, [*moments.windows, *moments.other_windows], truth))
    for score in (reference_scores, official_scores):
        best, both = (score(listed) for listed in cases.values())
        assert [best[name] for name in ("R1@0.5", "R1@0.7", "R1_avg", "mIoU")] == [
            both[name] for name in ("R1@0.5", "R1@0.7", "R1_avg", "mIoU")
        ]
        assert all(both["detail"]["mAP"][name] >= value for name, value in best["detail"]["mAP"].items())
        assert both["mAP"] > best["mAP"] + 1


def test_both_protocols_rank_alike():
    """The first window is right, the second has more support."""
    moments = score_moments(["[[0, 4], [10, 20]]", "[[0, 4]]"], [-0.5, -0.6], 40, window_order="longest")
    case = EvalCase(1, moments.windows, [[10, 20]])
    assert reference_scores([case])["mAP"] == official_scores([case])["mAP"] == 100


@pytest.mark.parametrize(
    ("scores", "falling"),
    [
        ([0.9, 0.5, 0.5, 0.7], [0.9, 0.5, 0.4999, 0.4998]),
        ([1.0, 1.0], [1.0, 0.9999]),
        ([0.00004, 0.3, 0.0], [0.0002, 0.0001, 0.0]),
        ([0.12345], [0.1234]),
        ([], []),
    ],
)
def test_falling_scores(scores, falling):
    assert falling_scores(scores) == falling


def test_numbers_that_replace_others_are_read_back():
    texts = ["[[100, 113]]", "[[113, 129], [2, 5]]"]
    moments = score_moments(
        texts, [-0.1, -0.1], 150, window_order="given", window_source="all_beams", meant_seconds={113: 112, 129: 128}
    )
    assert [window[:2] for window in moments.windows] == [[100, 112]]
    assert sorted(window[:2] for window in moments.other_windows) == [[2, 5], [112, 128]]
    assert moments.status == "exact"


def test_an_unreadable_best_answer_gives_way_to_the_next_and_is_counted():
    moments = score_moments(["no idea", "[[3, 9]]"], [-0.1, -0.9], 40, window_order="score")
    assert [w[:2] for w in moments.windows] == [[3, 9]]
    assert (moments.text, moments.status) == ("[[3, 9]]", "repaired")


def test_the_answer_that_it_does_not_happen_gives_no_window_and_is_exact():
    """Windows of other beams do not replace it, but an answer that cannot be read gives way to it."""
    moments = score_moments(["[]", "[[3, 9]]"], [-0.1, -0.9], 40, window_order="score")
    assert (moments.windows, moments.support, moments.text, moments.status) == ([], [], "[]", "exact")
    assert moments.is_absent
    assert [beam.windows for beam in moments.hypotheses] == [[], [[3, 9]]]
    second = score_moments(["no idea", "[]", "[[3, 9]]"], [-0.1, -0.9, -1.0], 40, window_order="score")
    assert (second.windows, second.text, second.status, second.is_absent) == ([], "[]", "repaired", True)
    unreadable = score_moments(["", "[["], [-0.1, -0.2], 40, window_order="score")
    assert not unreadable.is_absent
    found = score_moments(["[[3, 9]]", "[]"], [-0.1, -0.9], 40, window_order="score")
    assert not found.is_absent
    assert found.windows[0][2] < 1
    reference = score_moments(["[]", "[[3, 9]]"], [-0.1, -0.9], 40, window_order="given", behaviour="reference")
    assert not reference.is_absent


def test_what_the_other_beams_say_of_a_query_that_does_not_happen_is_its_presence():
    """Beams of 1/2, 1/4, 1/4: of [0, 10] and [0, 5], half of it, the first has 1/4 + 1/8."""
    log_probabilities = [math.log(2), 0.0, 0.0]
    moments = score_moments(["[]", "[[0, 10]]", "[[0, 5]]"], log_probabilities, 40, window_order="score")
    assert moments.presence == pytest.approx(0.375)
    assert score_moments(["[]", "[]"], [-0.1, -0.2], 40, window_order="score").presence == 0.0
    # With windows the support of the best one says it, and an answer that cannot be read says nothing.
    for texts in (["[[0, 10]]", "[]"], ["no idea", "what"]):
        assert score_moments(texts, [-0.1, -0.2], 40, window_order="score").presence is None


def test_no_readable_answer_gives_no_moment():
    moments = score_moments(["", "[["], [-0.1, -0.2], 40, window_order="score")
    assert (moments.windows, moments.status) == ([], "empty")


def test_the_reference_answers_with_the_whole_video_in_the_order_of_time():
    assert [w[:2] for w in score_moments(["?"], [-1.0], 40, window_order="longest", behaviour="reference").windows] == [
        [0, 40]
    ]
    moments = score_moments(["[[20, 30], [0, 4]]"], [-1.0], 40, window_order="longest", behaviour="reference")
    assert [w[:2] for w in moments.windows] == [[0, 4], [20, 30]]
