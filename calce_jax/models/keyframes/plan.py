"""The frame plan: the result of selection, in fixed shapes.

B batch, T frames of a padded video, S slots for frames in the prompt (T in stage 1, T // 2 in stage 2).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from calce_jax.batch import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FramePlan:
    """The frames of a prompt, of one video (no B) or of a batch.

    Slots are filled from the left in time order; unused slots have frame index 0.

    Attributes:
      frame_index: int32, index (not seconds) of the frame in each slot.
      slot_mask: True for used slots.
      is_keyframe: True for slots of key frames, which keep all query tokens; other used slots are compressed.
      cluster: int32, the cluster of every frame, -1 for padding; for reports and tests.
      reference_error: whether the original stops with an error on this sample. Device code cannot raise, so the host
        checks it; always False under the default behaviour.
    """

    frame_index: Int[AnyArray, "*B S"]
    slot_mask: Bool[AnyArray, "*B S"]
    is_keyframe: Bool[AnyArray, "*B S"]
    cluster: Int[AnyArray, "*B T"]
    reference_error: Bool[AnyArray, "*B"]


def build_frame_plan(
    is_keyframe: Bool[Array, " T"],
    is_compressed: Bool[Array, " T"],
    *,
    num_slots: int,
    cluster: Int[Array, " T"],
    reference_error: Bool[Array, ""],
) -> FramePlan:
    """Return the plan of one video, its selected frames in time order.

    Args:
      is_keyframe: key frames.
      is_compressed: compressed frames; disjoint from `is_keyframe`.
      num_slots: S; if more frames are selected, the last ones are dropped.
      cluster, reference_error: see `FramePlan`.
    """
    is_selected = is_keyframe | is_compressed
    frame_index = jnp.nonzero(is_selected, size=num_slots, fill_value=0)[0].astype(jnp.int32)
    slot_mask = jnp.arange(num_slots) < is_selected.sum()
    return FramePlan(
        frame_index=frame_index,
        slot_mask=slot_mask,
        is_keyframe=slot_mask & is_keyframe[frame_index],
        cluster=cluster,
        reference_error=reference_error,
    )
