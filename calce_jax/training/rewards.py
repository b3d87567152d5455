"""Rewards of answers and their advantages, on the device.

The reward of an answer is the overlap of its windows with the true ones, 0 to 1: windows are matched one to one, the
pair of greatest IoU first, and the sum of the IoUs of all pairs is divided by the greater number of windows. So a
window too many costs as much as one too few, and "[]" is worth 1 where the truth has no window and 0 elsewhere. An
answer that cannot be read is worth 0.

Dimensions: N answers, R answers of a group, B groups, P predicted windows, W true windows.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calce_jax.models.answer_parsing import AnswerWindows


def answer_rewards(predicted: AnswerWindows, true: AnswerWindows) -> Float[Array, " N"]:
    """Return the reward of each answer; 0 where either is malformed."""
    overlap = matched_iou(pairwise_iou(predicted, true))
    count = jnp.maximum(predicted.mask.sum(axis=1), true.mask.sum(axis=1)).astype(jnp.float32)
    reward = jnp.where(count == 0, 1.0, overlap / jnp.maximum(count, 1.0))
    return jnp.where(predicted.well_formed & true.well_formed, reward, 0.0)


def pairwise_iou(predicted: AnswerWindows, true: AnswerWindows) -> Float[Array, "N P W"]:
    """Return the intersection over union of every predicted window with every true one; 0 where there is none."""
    first, second = predicted.windows[:, :, None], true.windows[:, None, :]
    overlap = jnp.minimum(first[..., 1], second[..., 1]) - jnp.maximum(first[..., 0], second[..., 0])
    overlap = jnp.maximum(overlap, 0.0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - overlap
    is_pair = predicted.mask[:, :, None] & true.mask[:, None, :]
    return jnp.where(is_pair, overlap / jnp.maximum(union, 1.0), 0.0)


def matched_iou(iou: Float[Array, "N P W"]) -> Float[Array, " N"]:
    """Return the sum of the IoUs of the pairs of a one-to-one matching, the pair of greatest IoU first."""
    rows, columns = jnp.arange(iou.shape[1])[None, :, None], jnp.arange(iou.shape[2])[None, None]

    def match(state: tuple[Array, Array]) -> tuple[Array, Array]:
        total, iou = state
        best = iou.reshape(iou.shape[0], -1).argmax(axis=1)[:, None, None]
        is_taken = (rows == best // iou.shape[2]) | (columns == best % iou.shape[2])
        return total + iou.max(axis=(1, 2)), jnp.where(is_taken, 0.0, iou)

    # Each turn takes a pair of every answer that has one left.
    total, _ = jax.lax.while_loop(lambda state: (state[1] > 0).any(), match, (jnp.zeros(iou.shape[0]), iou))
    return total


def group_advantages(rewards: Float[Array, "R B"]) -> tuple[Float[Array, "R B"], Bool[Array, " B"]]:
    """Return how much better each answer is than the mean of its group, and which groups have equal rewards.

    Advantages are not divided by the spread of the group. Divided, a group of answers that differ by a second would
    weigh as much as one that has the right moment and the wrong one, and the gradient would no longer be that of the
    mean reward.
    """
    # Compared, since the mean of equal numbers may differ from them by rounding, which Adam would enlarge.
    is_equal = (rewards == rewards[:1]).all(axis=0)
    return jnp.where(is_equal[None], 0.0, rewards - rewards.mean(axis=0, keepdims=True)), is_equal
