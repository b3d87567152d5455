"""Scores say how many of the considered answers agree."""

import math

import pytest

from calce_jax.moments import moments, support


def test_a_window_that_every_answer_has_scores_one():
    found = moments(["[[2, 8]]", "[[2, 8], [20, 30]]"], [-0.1, -3.0], 40, by="score")
    assert found.windows == [[2.0, 8.0, 1.0]]
    assert found.status == "exact"


def test_support_is_overlap_weighted_by_probability():
    answers = [[[0, 10]], [[0, 5]], []]
    weights = [1.0, 0.5, 0.25]
    expected = (1.0 * 1 + 0.5 * 0.5 + 0.25 * 0) / 1.75
    found = support([[0, 10]], answers, [math.log(w) for w in weights])
    assert found == [pytest.approx(expected, abs=1e-4)]


def test_order_follows_the_chosen_evidence():
    texts, probabilities = ["[[0, 4], [10, 20]]", "[[0, 4]]"], [-0.5, -0.6]
    starts = {
        by: [w[0] for w in moments(texts, probabilities, 40, by=by).windows] for by in ("given", "longest", "score")
    }
    assert starts == {"given": [0, 10], "longest": [10, 0], "score": [0, 10]}


def test_an_unreadable_best_answer_gives_way_to_the_next_and_is_counted():
    found = moments(["no idea", "[[3, 9]]"], [-0.1, -0.9], 40, by="score")
    assert [w[:2] for w in found.windows] == [[3, 9]]
    assert (found.text, found.status) == ("[[3, 9]]", "repaired")


def test_no_readable_answer_gives_no_moment():
    found = moments(["", "[["], [-0.1, -0.2], 40, by="score")
    assert (found.windows, found.status) == ([], "empty")


def test_the_reference_answers_with_the_whole_video_in_the_order_of_time():
    assert [w[:2] for w in moments(["?"], [-1.0], 40, by="longest", behaviour="reference").windows] == [[0, 40]]
    found = moments(["[[20, 30], [0, 4]]"], [-1.0], 40, by="longest", behaviour="reference")
    assert [w[:2] for w in found.windows] == [[0, 4], [20, 30]]
