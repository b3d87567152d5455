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

from calce_jax.batch import AnyArray
from calce_jax.models.keyframes.plan import FramePlan


@struct.dataclass
class CaptionSelection:
    """Which captions are used, most similar to the query first."""

    caption_index: Int[AnyArray, "*B K"]  # caption numbers
    is_used: Bool[AnyArray, "*B K"]
    similarity: Float[AnyArray, "*B C"]  # cosine with the query, of every caption


@struct.dataclass
class PromptLayout:
    """What stands at every position. `token_id` counts where `is_text`; `slot`, `query_token` and `is_keyframe` where not."""

    is_text: Bool[Array, "*B L"]
    token_id: Int[Array, "*B L"]  # T5 id
    slot: Int[Array, "*B L"]  # of the plan
    query_token: Int[Array, "*B L"]  # number of the query token within its frame
    is_keyframe: Bool[Array, "*B L"]  # the frame is a key frame
    mask: Bool[Array, "*B L"]  # False where padded


def select_captions(
    query: Float[Array, "B D"],
    captions: Float[Array, "B C D"],
    caption_mask: Bool[Array, "B C"],
    *,
    min_similarity: float,
    max_captions: int,
) -> CaptionSelection:
    """Take the captions whose cosine with the query exceeds `min_similarity`, the `max_captions` most similar at most.

    Equally similar ones stay in order of time. As in the original, the order of use is that of similarity.
    """
    similarity = jnp.einsum("bd,bcd->bc", _unit(query), _unit(captions))
    masked_similarity = jnp.where(caption_mask, similarity, -jnp.inf)
    caption_index = jnp.argsort(-masked_similarity, axis=1)[:, :max_captions].astype(jnp.int32)
    return CaptionSelection(
        caption_index=caption_index,
        is_used=jnp.take_along_axis(masked_similarity, caption_index, axis=1) > min_similarity,
        similarity=similarity,
    )


def _unit(x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)


def count_prompt_tokens(
    frame_plan: FramePlan,
    spans: Int[Array, "B I 2"],
    caption_selection: CaptionSelection,
    *,
    full_tokens: int,
    compressed_tokens: int,
) -> Int[Array, " B"]:
    """Return the number of tokens each prompt needs; a frame takes `full_tokens` or `compressed_tokens` query tokens."""

    def sample_length(frame_plan: FramePlan, spans: Array, caption_selection: CaptionSelection) -> Int[Array, ""]:
        return _prompt_items(frame_plan, spans, caption_selection, full_tokens, compressed_tokens)[1].sum()

    return jax.vmap(sample_length)(frame_plan, spans, caption_selection)


def build_prompt_layout(
    frame_plan: FramePlan,
    tokens: Int[Array, "B M"],
    spans: Int[Array, "B I 2"],
    caption_selection: CaptionSelection,
    *,
    length: int,
    full_tokens: int,
    compressed_tokens: int,
) -> PromptLayout:
    """Say what stands at each of `length` positions.

    A prompt that needs more is cut at the right; compare `lengths`.
    """

    def layout_sample(
        frame_plan: FramePlan, tokens: Array, spans: Array, caption_selection: CaptionSelection
    ) -> PromptLayout:
        item_starts, item_lengths = _prompt_items(frame_plan, spans, caption_selection, full_tokens, compressed_tokens)
        item_ends = jnp.cumsum(item_lengths)
        position = jnp.arange(length, dtype=item_ends.dtype)
        mask = position < item_ends[-1]
        item = jnp.minimum(jnp.searchsorted(item_ends, position, side="right"), item_ends.shape[0] - 1)
        offset = jnp.where(mask, position - (item_ends - item_lengths)[item], 0)
        # Frames and their times alternate at the front; all other items are text.
        num_slots = frame_plan.frame_index.shape[0]
        is_visual = mask & (item < 2 * num_slots) & (item % 2 == 0)
        slot = jnp.where(is_visual, item // 2, 0)
        token = tokens[jnp.where(is_visual, 0, item_starts[item] + offset)]
        return PromptLayout(
            is_text=mask & ~is_visual,
            token_id=jnp.where(mask & ~is_visual, token, 0),
            slot=slot,
            query_token=jnp.where(is_visual, offset, 0),
            is_keyframe=is_visual & frame_plan.is_keyframe[slot],
            mask=mask,
        )

    return jax.vmap(layout_sample)(frame_plan, tokens, spans, caption_selection)


def _prompt_items(
    frame_plan: FramePlan,
    spans: Int[Array, "I 2"],
    caption_selection: CaptionSelection,
    full_tokens: int,
    compressed_tokens: int,
) -> tuple[Int[Array, " J"], Int[Array, " J"]]:
    """Return where in the text each item starts (0 for frames), and how many positions it takes, for one sample."""
    num_captions = caption_selection.similarity.shape[0]
    num_frames = spans.shape[0] - num_captions - 4
    time_spans = jnp.where(frame_plan.slot_mask[:, None], spans[frame_plan.frame_index], 0)
    frame_spans = jnp.stack(
        [
            jnp.zeros_like(frame_plan.frame_index),
            jnp.where(frame_plan.slot_mask, jnp.where(frame_plan.is_keyframe, full_tokens, compressed_tokens), 0),
        ],
        -1,
    )
    video_spans = jnp.stack([frame_spans, time_spans], axis=1).reshape(-1, 2)
    video_end, caption_end, text = spans[num_frames], spans[-2], spans[-1]
    no_caption = jnp.where(caption_selection.is_used.any(), 0, spans[-3])
    caption_spans = jnp.where(
        caption_selection.is_used[:, None], spans[num_frames + 1 + caption_selection.caption_index], 0
    )
    items = jnp.concatenate(
        [video_spans, jnp.stack([video_end]), caption_spans, jnp.stack([no_caption, caption_end, text])]
    )
    return items[:, 0], items[:, 1]
