"""Features of frames: the tokens of the vision tower, or the Q-Former's output for them.

At full size the Q-Former's output is a thirteenth of the tokens. It can replace them wherever `ln_vision`, the layer
between the two, is constant: at inference, and in runs that freeze it.

Dimensions: B videos, T frames, P tokens of a frame, D width of the ViT, Q query tokens, W width of the Q-Former.
"""

from dataclasses import dataclass
from typing import TypeAlias

import jax
from jaxtyping import Array, Float

from calce_jax.batch import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QFormerFeatures:
    """Output of the Q-Former for frames: 4 MB for 75 frames at full size."""

    means: Float[AnyArray, "B T D"]  # float32 mean of a frame's tokens after `ln_vision`: features of stage-1 selection
    queries: Float[AnyArray, "B T Q W"]  # in the dtype of the activations


VisionFeatures: TypeAlias = Float[Array, "B T P D"] | QFormerFeatures
