"""Prompt packing on the device: the content of every position of every prompt.

A prompt is a list of items in order: a frame, its time, the next frame, its time, ..., the end of the video part, the
selected captions (or their replacement), the end of the caption part, the text. An item is a run of query tokens or a
span of text; an absent item has length 0. The start of each item is the cumulative sum of the lengths before it, and
the item of a position is found by binary search. Prompts are padded on the right.

Dimensions: B batch, T frames, S slots of the plan, C captions, K captions of a block or most captions in a prompt, U
BERT tokens, I spans, J items, M text tokens, L positions, D width of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calce_jax.batch import NUM_FIXED_SPANS
from calce_jax.models.keyframes.plan import FramePlan
from calce_jax.models.layers import Key
from calce_jax.models.selection import CaptionSelection


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptLayout:
    """The content of every position: `token_id` where `is_text`, else `slot`, `query_token` and `is_keyframe`."""

    is_text: Bool[Array, "*B L"]
    token_id: Int[Array, "*B L"]  # T5 id
    slot: Int[Array, "*B L"]  # of the plan
    query_token: Int[Array, "*B L"]  # index of the query token within its frame
    is_keyframe: Bool[Array, "*B L"]  # whether the frame is a key frame
    mask: Bool[Array, "*B L"]  # False where padded


def caption_similarity(query: Float[Array, "B D"], captions: Float[Array, "B C D"]) -> Float[Array, "B C"]:
    """Return the cosine of each caption with the query; 0 for a vector of zeros."""
    return jnp.einsum("bd,bcd->bc", _unit(query), _unit(captions), precision=jax.lax.Precision.HIGHEST)


def map_caption_blocks(
    similarity: Callable[[Int[Array, "B K U"], Key], Float[Array, "B K"]],
    caption_bert_tokens: Int[Array, "B C U"],
    block_size: int,
    key: Key = None,
) -> Float[Array, "B C"]:
    """Return the similarity of all captions, computed for blocks of K = `block_size` captions, one after the other.

    A block that is empty in every row of the batch is skipped; its similarities are 0. Up to one block is computed as a
    whole, without a loop, so a program for few captions has none.

    Args:
      similarity: of a block.
      caption_bert_tokens: see `calce_jax.batch`; C is at most K, or a multiple of K.
      block_size: K.
      key: of dropout; the first block gets this one, the others are folded from it.
    """
    b, c, u = caption_bert_tokens.shape
    if c <= block_size:
        return similarity(caption_bert_tokens, key)
    num_blocks = c // block_size
    blocks = jnp.moveaxis(caption_bert_tokens.reshape(b, num_blocks, block_size, u), 1, 0)
    keys = None
    if key is not None:
        keys = jnp.stack([key, *(jax.random.fold_in(key, number) for number in range(1, num_blocks))])

    def block_similarity(block: tuple[Int[Array, "B K U"], Key]) -> Float[Array, "B K"]:
        tokens, key = block
        return jax.lax.cond((tokens != 0).any(), similarity, lambda tokens, _: jnp.zeros(tokens.shape[:2]), tokens, key)

    return jnp.moveaxis(jax.lax.map(block_similarity, (blocks, keys)), 0, 1).reshape(b, c)


def select_captions(
    similarity: Float[Array, "B C"],
    caption_mask: Bool[Array, "B C"],
    *,
    min_similarity: float,
    max_captions: int,
) -> CaptionSelection:
    """Select the `max_captions` captions of largest cosine with the query, if it exceeds `min_similarity`.

    They are ordered by similarity, as in the original; ties keep the order of time.

    Args:
      similarity: from `caption_similarity`.
      caption_mask: False for absent captions.
      min_similarity, max_captions: see `calce_jax.models.selection.SelectionConfig`.
    """
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
    """Return the length of each prompt in tokens.

    Args:
      frame_plan, caption_selection: frames and captions of the prompts.
      spans: starts and lengths of the text pieces, see `calce_jax.batch`.
      full_tokens, compressed_tokens: query tokens of a key frame and of a compressed frame.
    """

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
    """Return the content of each of `length` positions; a longer prompt is cut on the right.

    Args:
      frame_plan, caption_selection: frames and captions of the prompts.
      tokens, spans: text pieces, see `calce_jax.batch`.
      length: L; `count_prompt_tokens` returns what a prompt needs.
      full_tokens, compressed_tokens: query tokens of a key frame and of a compressed frame.
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
    """Return the start in `tokens` (0 for frames) and the length of each item of one prompt."""
    num_captions = caption_selection.similarity.shape[0]
    num_frames = spans.shape[0] - num_captions - NUM_FIXED_SPANS
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
