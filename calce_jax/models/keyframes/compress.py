"""Thinning a selection until it fits: first long runs are halved, then frames are removed one by one.

T frames, D draws.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from calce_jax.models.keyframes.borders import place_in_run

# The original tosses a coin for one frame of each kind in turn; these are the chances that it is removed.
CHANCE_OTHER, CHANCE_KEY = 0.7, 0.3

Masks = tuple[Bool[Array, " T"], Bool[Array, " T"]]


def compress(
    key: Bool[Array, " T"],
    other: Bool[Array, " T"],
    target: Int[Array, ""],
    draws: Float[Array, "D 2"] | None = None,
) -> Masks:
    """Remove frames of one video until at most `target` are left.

    Runs of neighbouring frames are halved (every second frame goes), the longest first, in turn a run of `other` and a
    run of `key`. When no two neighbours are left, single frames go: without draws, exactly as many as must, seven of
    ten from `other` and the rest from `key` (the original's odds), each share evenly spread over time.

    Args:
      key: frames to be kept in full.
      other: frames to be kept compressed; disjoint from `key`.
      target: int32, the number of frames that may stay.
      draws: uniform in [0, 1). With them single frames go as in the original: in each round one of `other` and one of
        `key` is picked (first column) and goes with chance 0.7 and 0.3 (second column). A round draws for both before
        it counts, so that one frame too many may go. Should the draws run out, the rest goes as without.

    Returns:
      The frames of `key` and of `other` that stay.
    """
    key, other = _halve_runs(key, other, target)
    if draws is not None:
        key, other = _remove_drawn(key, other, target, draws)
    excess = jnp.maximum(_count(key, other) - target, 0)
    # In integers: ceil(0.7 * excess), as far as `key` can make up the rest and `other` has so many.
    from_other = jnp.clip((7 * excess + 9) // 10, jnp.maximum(excess - _count(key), 0), _count(other))
    return _thin(key, excess - from_other), _thin(other, from_other)


def random_draws(key: PRNGKeyArray, videos: int, frames: int) -> Float[Array, "B D 2"]:
    """Draws for `compress`; a round removes one frame on average, so that these practically always suffice."""
    return jax.random.uniform(key, (videos, 4 * frames, 2))


def _count(*masks: Bool[Array, " T"]) -> Int[Array, ""]:
    return sum((mask.sum(dtype=jnp.int32) for mask in masks), jnp.int32(0))


def _halve_runs(key: Bool[Array, " T"], other: Bool[Array, " T"], target: Int[Array, ""]) -> Masks:
    """Halve the longest run of `other`, then that of `key`, until the target is met or only single frames are left."""

    def go_on(masks: Masks) -> Bool[Array, ""]:
        neighbours = (place_in_run(masks[0]) > 1) | (place_in_run(masks[1]) > 1)
        return (_count(*masks) > target) & neighbours.any()

    def step(masks: Masks) -> Masks:
        key, other = masks
        other = _halve_longest(other)
        return jnp.where(_count(key, other) > target, _halve_longest(key), key), other

    return jax.lax.while_loop(go_on, step, (key, other))


def _halve_longest(mask: Bool[Array, " T"]) -> Bool[Array, " T"]:
    """Remove every second frame, beginning with the second, of the longest run; of the first one where several are."""
    place = place_in_run(mask)
    last = place.argmax()
    time = jnp.arange(mask.shape[0])
    inside = (time > last - place[last]) & (time <= last)
    return mask & ~(inside & (place % 2 == 0))


def _remove_drawn(
    key: Bool[Array, " T"], other: Bool[Array, " T"], target: Int[Array, ""], draws: Float[Array, "D 2"]
) -> Masks:
    """Pick and toss, round by round. A kind of which no frame is left takes no draw."""
    rounds = draws.shape[0]

    def turn(mask: Bool[Array, " T"], used: Int[Array, ""], chance: float) -> tuple[Bool[Array, " T"], Int[Array, ""]]:
        which, toss = draws[jnp.minimum(used, rounds - 1)]
        left = _count(mask)
        rank = jnp.cumsum(mask, dtype=jnp.int32) - 1
        picked = mask & (rank == jnp.floor(which * left.astype(jnp.float32)).astype(jnp.int32))
        return mask & ~(picked & (toss < chance)), used + (left > 0).astype(jnp.int32)

    def go_on(state: tuple[Bool[Array, " T"], Bool[Array, " T"], Int[Array, ""]]) -> Bool[Array, ""]:
        key, other, used = state
        return (_count(key, other) > target) & (used < rounds)

    def step(
        state: tuple[Bool[Array, " T"], Bool[Array, " T"], Int[Array, ""]],
    ) -> tuple[Bool[Array, " T"], Bool[Array, " T"], Int[Array, ""]]:
        key, other, used = state
        other, used = turn(other, used, CHANCE_OTHER)
        key, used = turn(key, used, CHANCE_KEY)
        return key, other, used

    key, other, _ = jax.lax.while_loop(go_on, step, (key, other, jnp.int32(0)))
    return key, other


def _thin(mask: Bool[Array, " T"], remove: Int[Array, ""]) -> Bool[Array, " T"]:
    """Remove so many of the marked frames, evenly spread over them."""
    count = jnp.maximum(_count(mask), 1)
    rank = jnp.cumsum(mask, dtype=jnp.int32) - 1

    def gone_before(rank: Int[Array, " T"]) -> Int[Array, " T"]:
        # Half a step of offset centres the removed frames: one removed of five is the third.
        return (rank * remove + count // 2) // count

    return mask & (gone_before(rank + 1) == gone_before(rank))
