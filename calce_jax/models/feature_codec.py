"""Encoding vision features for storage, and decoding them.

The vision tower is frozen, so its tokens for a frame are the same in every epoch; so is the output of the Q-Former
where `ln_vision` is frozen too. `calce_jax.input_pipeline.feature_store` stores either. float32 and bfloat16 are stored
as they are; int8 has one scale for every 128 channels of a token, so that the outlier channels of vision transformers
reduce the precision of their own group only.

Dimensions: B videos, T frames, P tokens of a frame, D width, G scales of a token, E of D // G channels each.
"""

import math
from dataclasses import replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from calce_jax.batch import Batch, Features
from calce_jax.config import Behaviour
from calce_jax.models.calce import Calce
from calce_jax.models.crops import crop_and_resize
from calce_jax.models.vision_features import QFormerFeatures, VisionFeatures

StorageDtype = Literal["float32", "bfloat16", "int8"]
# The module whose output is stored.
FeatureSource = Literal["vit", "qformer"]

# Channels that share an int8 scale, if the width is a multiple of it.
GROUP_SIZE = 128
INT8_MAX = 127.0


def count_scales(width: int) -> int:
    """Return G, the number of int8 scales of a token of this width."""
    return width // math.gcd(width, GROUP_SIZE)


def quantize(vision_features: VisionFeatures, storage_dtype: StorageDtype) -> Features:
    """Encode vision features for storage; `QFormerFeatures.means` stay float32.

    An int8 value has an error of at most half a step, and a step is 1/127 of the largest value of its group.
    """
    if isinstance(vision_features, QFormerFeatures):
        return replace(quantize(vision_features.queries, storage_dtype), means=vision_features.means)
    if storage_dtype != "int8":
        return Features(values=vision_features.astype(jnp.dtype(storage_dtype)))
    grouped = _split_groups(vision_features.astype(jnp.float32), count_scales(vision_features.shape[-1]))
    scale = jnp.abs(grouped).max(axis=-1) / INT8_MAX
    quantized = jnp.rint(grouped / jnp.where(scale > 0, scale, 1.0)[..., None])
    return Features(values=quantized.astype(jnp.int8).reshape(vision_features.shape), scale=scale)


def dequantize(features: Features, dtype: DTypeLike) -> VisionFeatures:
    """Decode stored features to activations of `dtype`."""
    tokens = features.values.astype(jnp.float32 if features.scale is not None else dtype)
    if features.scale is not None:
        grouped = _split_groups(tokens, features.scale.shape[-1])
        tokens = (grouped * features.scale[..., None]).reshape(tokens.shape).astype(dtype)
    return tokens if features.means is None else QFormerFeatures(means=features.means, queries=tokens)


def load_or_encode(model: Calce, batch: Batch, behaviour: Behaviour = "default") -> VisionFeatures:
    """Return the vision features of a batch: its stored features, or else those of its frames; no gradient.

    Where `ln_vision` is frozen, tokens of the vision tower are encoded by the Q-Former at once.

    Args:
      model: encodes.
      batch: with frames, to be cropped where it has crops, or with features.
      behaviour: of crops, see `crop_and_resize`.
    """
    if batch.features is None:
        frames = batch.frames
        if batch.crop is not None:
            frames = crop_and_resize(frames, batch.crop, frames.shape[2], behaviour)
        vision_features = model.encode_frames(frames)
    else:
        vision_features = jax.lax.stop_gradient(dequantize(batch.features, model.config.dtype))
    if isinstance(vision_features, QFormerFeatures) or model.config.ln_vision == "trained":
        return vision_features
    return model.encode_queries(vision_features)


def _split_groups(tokens: Any, groups: int) -> Float[Array, "B T P G E"]:
    return tokens.reshape(*tokens.shape[:-1], groups, -1)
