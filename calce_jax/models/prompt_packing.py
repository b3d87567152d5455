"""Laying out prompts on the device: what stands at every position of every sequence.

A prompt is a list of items in order: a frame, its time, the next frame, its time, ..., the end of the video part, the
captions that are used (or what stands in for them), the end of the caption part, the text. An item is a run of query
tokens or a span of text; an item that is left out has length 0. Where each item begins follows from the cumulative sum
of the lengths, and what stands at a position from one binary search. Only the far right is padding.

Dimensions: B batch, T frames, S slots of the plan, C captions, K captions used at most, I spans, M text tokens,
L positions, D width of an embedding.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from calce_jax.batch import Data
from calce_jax.models.keyframes.plan import Plan


@struct.dataclass
class Choice:
    """Which captions are used, most similar to the query first."""

    order: Int[Data, "*B K"]  # caption numbers
    used: Bool[Data, "*B K"]
    similarity: Float[Data, "*B C"]  # cosine with the query, of every caption


@struct.dataclass
class Packed:
    """What stands at every position. `token` counts where `text`; `slot`, `query` and `key` where not."""

    text: Bool[Array, "*B L"]
    token: Int[Array, "*B L"]  # T5 id
    slot: Int[Array, "*B L"]  # of the plan
    query: Int[Array, "*B L"]  # number of the query token within its frame
    key: Bool[Array, "*B L"]  # the frame is a key frame
    mask: Bool[Array, "*B L"]  # False where padded


def choose_captions(
    query: Float[Array, "B D"],
    captions: Float[Array, "B C D"],
    valid: Bool[Array, "B C"],
    *,
    threshold: float,
    limit: int,
) -> Choice:
    """Take the captions whose cosine with the query exceeds `threshold`, the `limit` most similar at most.

    Equally similar ones stay in order of time. As in the original, the order of use is that of similarity.
    """
    similarity = jnp.einsum("bd,bcd->bc", _unit(query), _unit(captions))
    ranked = jnp.where(valid, similarity, -jnp.inf)
    order = jnp.argsort(-ranked, axis=1)[:, :limit].astype(jnp.int32)
    return Choice(order=order, used=jnp.take_along_axis(ranked, order, axis=1) > threshold, similarity=similarity)


def _unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def lengths(plan: Plan, spans: Int[Array, "B I 2"], choice: Choice, *, full: int, compressed: int) -> Int[Array, " B"]:
    """Return the number of tokens each prompt needs; a frame takes `full` or `compressed` query tokens."""

    def one(plan: Plan, spans: Array, choice: Choice) -> Int[Array, ""]:
        return _items(plan, spans, choice, full, compressed)[1].sum()

    return jax.vmap(one)(plan, spans, choice)


def pack(
    plan: Plan,
    tokens: Int[Array, "B M"],
    spans: Int[Array, "B I 2"],
    choice: Choice,
    *,
    length: int,
    full: int,
    compressed: int,
) -> Packed:
    """Say what stands at each of `length` positions.

    A prompt that needs more is cut at the right; compare `lengths`.
    """

    def one(plan: Plan, tokens: Array, spans: Array, choice: Choice) -> Packed:
        starts, sizes = _items(plan, spans, choice, full, compressed)
        ends = jnp.cumsum(sizes)
        at = jnp.arange(length, dtype=ends.dtype)
        mask = at < ends[-1]
        item = jnp.minimum(jnp.searchsorted(ends, at, side="right"), ends.shape[0] - 1)
        offset = jnp.where(mask, at - (ends - sizes)[item], 0)
        # Frames and their times alternate at the front; all other items are text.
        slots = plan.index.shape[0]
        visual = mask & (item < 2 * slots) & (item % 2 == 0)
        slot = jnp.where(visual, item // 2, 0)
        token = tokens[jnp.where(visual, 0, starts[item] + offset)]
        return Packed(
            text=mask & ~visual,
            token=jnp.where(mask & ~visual, token, 0),
            slot=slot,
            query=jnp.where(visual, offset, 0),
            key=visual & plan.key[slot],
            mask=mask,
        )

    return jax.vmap(one)(plan, tokens, spans, choice)


def _items(
    plan: Plan, spans: Int[Array, "I 2"], choice: Choice, full: int, compressed: int
) -> tuple[Int[Array, " J"], Int[Array, " J"]]:
    """Return where in the text each item starts (0 for frames), and how many positions it takes, for one sample."""
    captions = choice.similarity.shape[0]
    frames = spans.shape[0] - captions - 4
    times = jnp.where(plan.kept[:, None], spans[plan.index], 0)
    looks = jnp.stack([jnp.zeros_like(plan.index), jnp.where(plan.kept, jnp.where(plan.key, full, compressed), 0)], -1)
    video = jnp.stack([looks, times], axis=1).reshape(-1, 2)
    video_end, caption_end, text = spans[frames], spans[-2], spans[-1]
    stand_in = jnp.where(choice.used.any(), 0, spans[-3])
    used = jnp.where(choice.used[:, None], spans[frames + 1 + choice.order], 0)
    items = jnp.concatenate([video, jnp.stack([video_end]), used, jnp.stack([stand_in, caption_end, text])])
    return items[:, 0], items[:, 1]
