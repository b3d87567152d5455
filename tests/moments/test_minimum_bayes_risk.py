"""The answer that agrees best with all beams, on cases computed by hand."""

import math

import numpy as np
import pytest

from calce_jax.models.answer_parsing import AnswerWindows
from calce_jax.moments.minimum_bayes_risk import least_risk, overlap
from calce_jax.moments.scoring import score_moments
from calce_jax.training.rewards import answer_rewards


def test_the_answer_in_the_middle_is_given():
    """[0, 10] is the most probable; [4, 12] overlaps both others by half, and is right with any of the three."""
    answers, probabilities = [[[0, 10]], [[4, 12]], [[6, 12]]], [0.4, 0.3, 0.3]
    expected = [0.4 + 0.3 * 6 / 12 + 0.3 * 4 / 12, 0.4 * 6 / 12 + 0.3 + 0.3 * 6 / 8, 0.4 * 4 / 12 + 0.3 * 6 / 8 + 0.3]
    assert np.argmax(expected) == 1
    assert least_risk(answers, probabilities) == 1
    assert least_risk(answers, [0.8, 0.1, 0.1]) == 0


def test_of_equal_answers_the_first_is_given():
    assert least_risk([[[0, 5]], [[10, 15]]], [0.5, 0.5]) == 0
    # 23 thirtieths each: 1/2 + 4/10 * 2/3, and 4/10 + 1/2 * 2/3 + 1/10 * 1/3, which is 1e-16 more in floating point.
    assert least_risk([[[0, 6]], [[0, 9]], [[6, 9]]], [0.5, 0.4, 0.1]) == 0
    # [3, 9] twice, as two beams may write it, is one answer with both probabilities.
    assert least_risk([[[20, 30]], [[3, 9]], [[3, 9]]], [0.4, 0.3, 0.3]) == 1


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([], [], 1.0),
        ([], [[0, 5]], 0.0),
        ([[0, 5]], [], 0.0),
        ([[0, 10]], [[5, 10]], 0.5),
        # The second window of one has no partner, and counts.
        ([[0, 10], [20, 30]], [[0, 10]], 0.5),
        # One to one: [0, 10] is taken by its equal, [0, 5] has to do with [20, 25].
        ([[0, 5], [0, 10]], [[0, 10], [20, 25]], 0.5),
    ],
)
def test_overlap_of_two_answers(first, second, expected):
    assert overlap(first, second) == pytest.approx(expected)
    assert overlap(second, first) == pytest.approx(expected)


def test_overlap_is_the_reward_of_training():
    rng = np.random.default_rng(0)

    def draw():
        windows = [[int(s), int(s + n)] for s, n in zip(rng.integers(0, 30, 4), rng.integers(1, 12, 4), strict=True)]
        return windows[: rng.integers(0, 5)]

    pairs = [(draw(), draw()) for _ in range(50)]

    def pad(answers):
        windows = np.zeros((len(answers), 4, 2), np.float32)
        for row, answer in enumerate(answers):
            windows[row, : len(answer)] = np.array(answer, np.float32).reshape(-1, 2)
        counts = np.array([len(answer) for answer in answers])
        return AnswerWindows(windows, np.arange(4) < counts[:, None], np.ones(len(answers), bool))

    rewards = answer_rewards(pad([first for first, _ in pairs]), pad([second for _, second in pairs]))
    # Ties of the matching aside, which the draws do not have, float32 sets the tolerance.
    np.testing.assert_allclose([overlap(*pair) for pair in pairs], rewards, atol=1e-6)


def decide(texts, shares, **options):
    options = {"window_order": "given", "decision": "minimum_bayes_risk"} | options
    return score_moments(texts, [math.log(share) for share in shares], 40, **options)


TEXTS = ["[[0, 10]]", "no idea", "[[4, 12]]", "[[6, 12]]"]
SHARES = (0.35, 0.1, 0.3, 0.25)


def test_a_prediction_has_the_answer_of_least_risk_first_and_the_others_behind():
    moments = decide(TEXTS, SHARES, window_order="longest", window_source="all_beams")
    assert (moments.text, moments.status) == ("[[4, 12]]", "exact")
    assert [window[:2] for window in moments.windows] == [[4, 12]]
    assert sorted(window[:2] for window in moments.other_windows) == [[0, 10], [6, 12]]
    assert decide(TEXTS, SHARES, decision="most_probable").text == "[[0, 10]]"
    assert decide(TEXTS, (0.85, 0.05, 0.05, 0.05)).text == "[[0, 10]]"
    # The original knows the best beam alone.
    assert decide(TEXTS, SHARES, behaviour="reference").text == "[[0, 10]]"


def test_an_unreadable_best_beam_is_counted_whichever_answer_is_given():
    moments = decide(["no idea", "[[0, 10]]", "[[4, 12]]", "[[6, 12]]"], (0.35, 0.35, 0.3, 0.25))
    assert (moments.text, moments.status) == ("[[4, 12]]", "repaired")
    # None is readable: the best is given, as it is.
    nothing = decide(["no", "idea"], (0.9, 0.8))
    assert (nothing.text, nothing.windows, nothing.status, nothing.is_absent) == ("no", [], "empty", False)


def test_it_does_not_happen_only_where_most_beams_say_so():
    """[] has 0.4, but windows that agree by three quarters have the rest; an unreadable beam is no []."""
    found = decide(["[]", "[[0, 8]]", "[[0, 6]]"], (0.4, 0.35, 0.25))
    assert (found.text, found.is_absent) == ("[[0, 8]]", False)
    assert decide(["[]", "[[0, 8]]", "what"], (0.45, 0.4, 0.15)).is_absent
    assert decide(["[[0, 8]]", "what", "[]"], (0.4, 0.3, 0.3)).text == "[[0, 8]]"
