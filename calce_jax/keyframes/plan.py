"""The plan: what selection decides about a video's frames, in fixed shapes.

B batch, T frames of a padded video, S slots for frames in the prompt (T in stage 1, T // 2 in stage 2).
"""

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Int


@struct.dataclass
class Plan:
    """Which frames go into the prompt and which of them in full.

    Slots are filled from the left in time order; the slots that are left over point to frame 0 and are not kept.

    Attributes:
      index: int32, the frame index (not seconds) that each slot holds.
      kept: whether the slot holds a frame that goes into the prompt.
      key: whether that frame keeps all its query tokens (a subset of `kept`); the others are compressed.
      cluster: int32, the cluster of every frame, -1 where there is no frame; for people who look.
      error: whether the original would have stopped with an error on this sample. Device code cannot raise, so the host
        looks here; always False under the default behaviour.
    """

    index: Int[Array, "B S"]
    kept: Bool[Array, "B S"]
    key: Bool[Array, "B S"]
    cluster: Int[Array, "B T"]
    error: Bool[Array, " B"]


def slots(key: Bool[Array, " T"], other: Bool[Array, " T"], size: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Packs one sample's chosen frames, in time order, into `size` slots.

    Args:
      key: frames that are kept in full.
      other: frames that are kept compressed.
      size: S; where more frames are chosen, the last ones find no slot.

    Returns:
      The `index` int32[S], `kept` bool[S] and `key` bool[S] of a plan.
    """
    chosen = key | other
    index = jnp.nonzero(chosen, size=size, fill_value=0)[0].astype(jnp.int32)
    kept = jnp.arange(size) < chosen.sum()
    return index, kept, kept & key[index]
