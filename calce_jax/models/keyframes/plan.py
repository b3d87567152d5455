"""The plan: what selection decides about a video's frames, in fixed shapes.

B batch, T frames of a padded video, S slots for frames in the prompt (T in stage 1, T // 2 in stage 2).
"""

from typing import Literal

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int

from calce_jax.batch import Data


@struct.dataclass
class Plan:
    """Which frames go into the prompt and which of them in full; of one video (no B) or of a batch.

    Slots are filled from the left in time order; the slots that are left over point to frame 0 and are not kept.

    Attributes:
      index: int32, the frame index (not seconds) that each slot holds.
      kept: whether the slot holds a frame that goes into the prompt.
      key: whether that frame keeps all its query tokens (a subset of `kept`); the others are compressed.
      cluster: int32, the cluster of every frame, -1 where there is no frame; for people who look.
      error: whether the original would have stopped with an error on this sample. Device code cannot raise, so the host
        looks here; always False under the default behaviour.
    """

    index: Int[Data, "*B S"]
    kept: Bool[Data, "*B S"]
    key: Bool[Data, "*B S"]
    cluster: Int[Data, "*B T"]
    error: Bool[Data, "*B"]


def lay_out(
    key: Bool[Array, " T"],
    other: Bool[Array, " T"],
    *,
    slots: int,
    cluster: Int[Array, " T"],
    error: Bool[Array, ""],
) -> Plan:
    """Lay one video's chosen frames, in time order, into slots.

    Args:
      key: frames that are kept in full.
      other: frames that are kept compressed.
      slots: S; where more frames are chosen, the last ones find no slot.
      cluster: handed through.
      error: handed through.
    """
    chosen = key | other
    index = jnp.nonzero(chosen, size=slots, fill_value=0)[0].astype(jnp.int32)
    kept = jnp.arange(slots) < chosen.sum()
    return Plan(index=index, kept=kept, key=kept & key[index], cluster=cluster, error=error)


Treatment = Literal["full", "compressed", "dropped"]
