"""Rewards and advantages of hand-made answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.models.answer_parsing import AnswerWindows
from calce_jax.training.rewards import answer_rewards, group_advantages

SLOTS = 3


def answers(*rows):
    """Return answers of these windows; None is malformed."""
    windows, mask = np.zeros((len(rows), SLOTS, 2), np.float32), np.zeros((len(rows), SLOTS), bool)
    for row, values in enumerate(rows):
        for slot, window in enumerate(values or []):
            windows[row, slot], mask[row, slot] = window, True
    well_formed = np.array([values is not None for values in rows])
    return AnswerWindows(jnp.asarray(windows), jnp.asarray(mask), jnp.asarray(well_formed))


@pytest.mark.parametrize(
    ("predicted", "true", "reward"),
    [
        ([[10, 20]], [[10, 20]], 1.0),
        ([[10, 20]], [[15, 20]], 0.5),
        ([[10, 20]], [[20, 30]], 0.0),
        # The order of windows does not count.
        ([[30, 40], [10, 20]], [[10, 20], [30, 40]], 1.0),
        # A window too many and one too few cost the same.
        ([[10, 20], [30, 40]], [[10, 20]], 0.5),
        ([[10, 20]], [[10, 20], [30, 40]], 0.5),
        # A window is matched once: the second half of the truth is left.
        ([[10, 20], [10, 20]], [[10, 20], [30, 40]], 0.5),
        # One window over both: it is matched with the one of greater IoU, 20 of 30 seconds.
        ([[10, 40]], [[10, 30], [35, 40]], 20 / 30 / 2),
        # The pair of greatest IoU goes first, not the first of the list.
        ([[0, 10], [2, 10]], [[2, 10], [0, 4]], (1.0 + 4 / 10) / 2),
        ([], [], 1.0),
        ([], [[10, 20]], 0.0),
        ([[10, 20]], [], 0.0),
        (None, [[10, 20]], 0.0),
        (None, [], 0.0),
        ([], None, 0.0),
    ],
)
def test_rewards_of_hand_made_answers(predicted, true, reward):
    # Beside another row, whose matching takes more turns.
    rewards = answer_rewards(answers(predicted, [[1, 2], [3, 4], [5, 6]]), answers(true, [[5, 6], [1, 2], [3, 5]]))
    np.testing.assert_allclose(rewards, [reward, 2.5 / 3], rtol=1e-6)


def test_advantages_are_rewards_without_the_mean_of_their_group():
    rewards = jnp.array([[0.0, 0.7, 1.0], [0.5, 0.7, 1.0], [1.0, 0.7, 0.1]])
    advantages, is_equal = jax.jit(group_advantages)(rewards)
    np.testing.assert_allclose(advantages, [[-0.5, 0, 0.3], [0, 0, 0.3], [0.5, 0, -0.6]], atol=1e-6)
    assert is_equal.tolist() == [False, True, False]


@pytest.mark.parametrize("count", range(2, 20))
def test_equal_rewards_have_no_advantage_to_the_last_bit(count):
    rewards = jnp.tile(jnp.array([[1.0, 0.1, 1 / 3]]), (count, 1))
    assert not np.any(jax.jit(group_advantages)(rewards)[0])
