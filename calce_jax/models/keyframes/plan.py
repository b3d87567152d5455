"""The plan: what selection decides about a video's frames, in fixed shapes.

B batch, T frames of a padded video, S slots for frames in the prompt (T in stage 1, T // 2 in stage 2).
"""

from typing import Literal

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from calce_jax.batch import AnyArray


@struct.dataclass
class FramePlan:
    """Which frames go into the prompt and which of them in full; of one video (no B) or of a batch.

    Slots are filled from the left in time order; the slots that are left over point to frame 0 and are not kept.

    Attributes:
      frame_index: int32, the frame index (not seconds) that each slot holds.
      slot_mask: whether the slot holds a frame that goes into the prompt.
      is_keyframe: whether that frame keeps all its query tokens (a subset of `slot_mask`); the others are compressed.
      cluster: int32, the cluster of every frame, -1 where there is no frame; for people who look.
      reference_error: whether the original would have stopped with an error on this sample. Device code cannot raise, so the host
        looks here; always False under the default behaviour.
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
    """Lay one video's chosen frames, in time order, into slots.

    Args:
      is_keyframe: frames that are kept in full.
      is_compressed: frames that are kept compressed.
      num_slots: S; where more frames are chosen, the last ones find no slot.
      cluster: handed through.
      reference_error: handed through.
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


Treatment = Literal["full", "compressed", "dropped"]
