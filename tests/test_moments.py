"""Scores say how many of the considered answers agree."""

import math

import numpy as np
import pytest

from calce_jax.moments.scoring import Beam, expected_overlap, moments


def test_a_window_that_every_answer_has_scores_one():
    found = moments(["[[2, 8]]", "[[2, 8], [20, 30]]"], [-0.1, -3.0], 40, by="score")
    assert found.windows == [[2.0, 8.0, 1.0]]
    assert found.status == "exact"


def test_the_expected_overlap_weighs_answers_by_probability():
    beams = [Beam([[0, 10]], 4 / 7), Beam([[0, 5]], 2 / 7), Beam([], 1 / 7)]
    found = expected_overlap(np.array([[0.0, 10.0], [20.0, 30.0]]), beams)
    np.testing.assert_allclose(found, [4 / 7 + 2 / 7 * 0.5, 0.0], rtol=1e-12)


def test_all_answers_are_kept_with_their_share():
    found = moments(["[[2, 8]]", "[["], [math.log(0.3), math.log(0.1)], 40, by="score")
    assert [beam.windows for beam in found.beams] == [[[2, 8]], []]
    assert [beam.probability for beam in found.beams] == pytest.approx([0.75, 0.25])


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
