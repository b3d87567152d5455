"""What is seen of frames, made small enough to keep, and back.

The vision tower is frozen: what it gives of a frame is the same in every epoch. So is what the Q-Former says of that,
in a run that leaves `ln_vision` frozen too. `stored` and `restored` are the two ends of keeping either, in the files of
`calce_jax.input_pipeline.feature_store`. float32 and bfloat16 are the numbers themselves; int8 has a scale for every 128 channels of a token, so
that a channel that is far larger than the rest, as vision transformers have them, spoils no more than its neighbours.

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
from calce_jax.models.calce import Calce
from calce_jax.models.vision_features import QFormerFeatures, VisionFeatures

StorageDtype = Literal["float32", "bfloat16", "int8"]
# What the vision tower gives, or what the Q-Former says of it.
FeatureSource = Literal["vit", "qformer"]

# Channels that share a scale, where the width divides.
GROUP_SIZE = 128
INT8_MAX = 127.0


def count_scales(width: int) -> int:
    """Return G, the number of scales of a token of int8."""
    return width // math.gcd(width, GROUP_SIZE)


def quantize(vision_features: VisionFeatures, storage_dtype: StorageDtype) -> Features:
    """Turn what is seen into what is kept; means, of which a frame has but one, are kept whole.

    Each value of int8 is off by half a step at most, a step being a 127th of the largest value that shares its scale.
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
    """Turn what is kept into what is seen."""
    tokens = features.values.astype(jnp.float32 if features.scale is not None else dtype)
    if features.scale is not None:
        grouped = _split_groups(tokens, features.scale.shape[-1])
        tokens = (grouped * features.scale[..., None]).reshape(tokens.shape).astype(dtype)
    return tokens if features.means is None else QFormerFeatures(means=features.means, queries=tokens)


def load_or_encode(model: Calce, batch: Batch) -> VisionFeatures:
    """Return what is seen in a batch's frames: kept, where the batch brings that, or else computed.

    A model whose `ln_vision` is frozen looks at them with its Q-Former at once, which never says anything else.
    """
    if batch.features is None:
        vision_features = model.encode_frames(batch.frames)
    else:
        vision_features = jax.lax.stop_gradient(dequantize(batch.features, model.config.dtype))
    if isinstance(vision_features, QFormerFeatures) or model.config.ln_vision == "trained":
        return vision_features
    return model.encode_queries(vision_features)


def _split_groups(tokens: Any, groups: int) -> Float[Array, "B T P G E"]:
    return tokens.reshape(*tokens.shape[:-1], groups, -1)
