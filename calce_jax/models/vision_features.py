"""What is seen of frames: the vision tower's tokens, or what the Q-Former says of these.

The second is a thirteenth of the first, and stands for it wherever `ln_vision`, which lies between them, stays as it
is: when a trained run answers, and when a run leaves it frozen.

Dimensions: B videos, T frames, P tokens of a frame, D width of the ViT, Q query tokens, W width of the Q-Former.
"""

from typing import TypeAlias

from flax import struct
from jaxtyping import Array, Float

from calce_jax.batch import AnyArray


@struct.dataclass
class QFormerFeatures:
    """What the Q-Former says of frames: at the full size 4 MB for 75 of them."""

    means: Float[AnyArray, "B T D"]  # what stage 1 tells frames apart by
    queries: Float[AnyArray, "B T Q W"]  # in the dtype of the activations


VisionFeatures: TypeAlias = Float[Array, "B T P D"] | QFormerFeatures
