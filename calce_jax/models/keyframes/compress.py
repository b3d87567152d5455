"""Removing selected frames until few enough are left: first long runs are halved, then single frames are removed.

T frames, D draws, B videos.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from calce_jax.models.keyframes.borders import position_in_run

# In each round the original removes one frame of each kind with these probabilities.
COMPRESSED_REMOVAL_PROBABILITY, KEYFRAME_REMOVAL_PROBABILITY = 0.7, 0.3

MaskPair = tuple[Bool[Array, " T"], Bool[Array, " T"]]


def compress(
    is_keyframe: Bool[Array, " T"],
    is_compressed: Bool[Array, " T"],
    max_frames: Int[Array, ""],
    draws: Float[Array, "D 2"] | None = None,
) -> MaskPair:
    """Remove frames of one video until at most `max_frames` are left.

    Runs of neighbouring frames are halved (every second frame is removed), the longest first, alternating between a run
    of `is_compressed` and a run of `is_keyframe`. When no two neighbours are left, single frames are removed: without
    draws exactly the excess, 70 % of it from `is_compressed` and the rest from `is_keyframe` (the original's
    probabilities), evenly spread over time.

    Args:
      is_keyframe: key frames.
      is_compressed: compressed frames; disjoint from `is_keyframe`.
      max_frames: int32.
      draws: uniform in [0, 1). With them single frames are removed as in the original: each round picks a frame of
        `is_compressed` and one of `is_keyframe` (first column) and removes it with probability 0.7 and 0.3 (second
        column). A round is not interrupted, so one frame too many may be removed. If the draws run out, the rest of
        the excess is removed as without draws.

    Returns:
      The remaining frames of `is_keyframe` and of `is_compressed`.
    """
    is_keyframe, is_compressed = _halve_runs(is_keyframe, is_compressed, max_frames)
    if draws is not None:
        is_keyframe, is_compressed = _remove_at_random(is_keyframe, is_compressed, max_frames, draws)
    excess = jnp.maximum(_count_marked(is_keyframe, is_compressed) - max_frames, 0)
    # ceil(0.7 * excess) in integers, limited by the numbers of frames of each kind.
    num_compressed_removed = jnp.clip(
        (7 * excess + 9) // 10, jnp.maximum(excess - _count_marked(is_keyframe), 0), _count_marked(is_compressed)
    )
    return _remove_evenly(is_keyframe, excess - num_compressed_removed), _remove_evenly(
        is_compressed, num_compressed_removed
    )


def draw_removal_numbers(key: PRNGKeyArray, num_videos: int, num_frames: int) -> Float[Array, "B D 2"]:
    """Return draws for `compress`, D = 4 T: practically always enough, as a round removes one frame on average."""
    return jax.random.uniform(key, (num_videos, 4 * num_frames, 2))


def _count_marked(*masks: Bool[Array, " T"]) -> Int[Array, ""]:
    return sum((mask.sum(dtype=jnp.int32) for mask in masks), jnp.int32(0))


def _halve_runs(
    is_keyframe: Bool[Array, " T"], is_compressed: Bool[Array, " T"], max_frames: Int[Array, ""]
) -> MaskPair:
    """Halve the longest runs in turn until at most `max_frames` are left or no run has two frames."""

    def should_continue(masks: MaskPair) -> Bool[Array, ""]:
        has_neighbour = (position_in_run(masks[0]) > 1) | (position_in_run(masks[1]) > 1)
        return (_count_marked(*masks) > max_frames) & has_neighbour.any()

    def halve_longest_runs(masks: MaskPair) -> MaskPair:
        is_keyframe, is_compressed = masks
        is_compressed = _halve_longest_run(is_compressed)
        return jnp.where(
            _count_marked(is_keyframe, is_compressed) > max_frames, _halve_longest_run(is_keyframe), is_keyframe
        ), is_compressed

    return jax.lax.while_loop(should_continue, halve_longest_runs, (is_keyframe, is_compressed))


def _halve_longest_run(mask: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Remove the second, fourth, ... frame of the longest run, of the first one if several are equally long."""
    position = position_in_run(mask)
    last = position.argmax()
    frame = jnp.arange(mask.shape[0])
    in_run = (frame > last - position[last]) & (frame <= last)
    return mask & ~(in_run & (position % 2 == 0))


def _remove_at_random(
    is_keyframe: Bool[Array, " T"],
    is_compressed: Bool[Array, " T"],
    max_frames: Int[Array, ""],
    draws: Float[Array, "D 2"],
) -> MaskPair:
    """Remove frames at random, round by round; see `compress`. A kind without frames uses no draw."""
    max_rounds = draws.shape[0]

    def remove_one(
        mask: Bool[Array, " T"], num_used: Int[Array, ""], probability: float
    ) -> tuple[Bool[Array, " T"], Int[Array, ""]]:
        pick, coin = draws[jnp.minimum(num_used, max_rounds - 1)]
        num_left = _count_marked(mask)
        ordinal = jnp.cumsum(mask, dtype=jnp.int32) - 1
        picked = mask & (ordinal == jnp.floor(pick * num_left.astype(jnp.float32)).astype(jnp.int32))
        return mask & ~(picked & (coin < probability)), num_used + (num_left > 0).astype(jnp.int32)

    def should_continue(state: tuple[Bool[Array, " T"], Bool[Array, " T"], Int[Array, ""]]) -> Bool[Array, ""]:
        is_keyframe, is_compressed, num_used = state
        return (_count_marked(is_keyframe, is_compressed) > max_frames) & (num_used < max_rounds)

    def run_round(
        state: tuple[Bool[Array, " T"], Bool[Array, " T"], Int[Array, ""]],
    ) -> tuple[Bool[Array, " T"], Bool[Array, " T"], Int[Array, ""]]:
        is_keyframe, is_compressed, num_used = state
        is_compressed, num_used = remove_one(is_compressed, num_used, COMPRESSED_REMOVAL_PROBABILITY)
        is_keyframe, num_used = remove_one(is_keyframe, num_used, KEYFRAME_REMOVAL_PROBABILITY)
        return is_keyframe, is_compressed, num_used

    is_keyframe, is_compressed, _ = jax.lax.while_loop(
        should_continue, run_round, (is_keyframe, is_compressed, jnp.int32(0))
    )
    return is_keyframe, is_compressed


def _remove_evenly(mask: Bool[Array, " T"], num_removed: Int[Array, ""]) -> Bool[Array, " T"]:
    """Remove `num_removed` marked frames, evenly spread over the marked ones."""
    count = jnp.maximum(_count_marked(mask), 1)
    ordinal = jnp.cumsum(mask, dtype=jnp.int32) - 1

    def removed_before(ordinal: Int[Array, " T"]) -> Int[Array, " T"]:
        # An offset of half a step centres the removed frames: one of five is the third.
        return (ordinal * num_removed + count // 2) // count

    return mask & (removed_before(ordinal + 1) == removed_before(ordinal))
