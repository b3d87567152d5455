"""What the vision tower gives, made small enough to keep, and back.

The tower is frozen: what it gives of a frame is the same in every epoch. `stored` and `restored` are the two ends of
keeping it (`data.features`). float32 and bfloat16 are the numbers themselves; int8 has a scale for every 128 channels
of a token, so that a channel that is far larger than the rest, as vision transformers have them, spoils no more than
its neighbours.

Dimensions: B videos, T frames, P tokens of a frame, D width, G scales of a token, E of D // G channels each.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from calce_jax.batch import Batch, Features
from calce_jax.models.calce import Calce

Store = Literal["float32", "bfloat16", "int8"]

# Channels that share a scale, where the width divides.
TOGETHER = 128
STEPS = 127.0


def scales(width: int) -> int:
    """Return G, the number of scales of a token of int8."""
    return width // math.gcd(width, TOGETHER)


def stored(tokens: Float[Array, "B T P D"], store: Store) -> Features:
    """Turn what the tower gives into what is kept.

    Each value of int8 is off by half a step at most, a step being a 127th of the largest value that shares its scale.
    """
    if store != "int8":
        return Features(values=tokens.astype(jnp.dtype(store)))
    grouped = _grouped(tokens.astype(jnp.float32), scales(tokens.shape[-1]))
    scale = jnp.abs(grouped).max(axis=-1) / STEPS
    steps = jnp.rint(grouped / jnp.where(scale > 0, scale, 1.0)[..., None])
    return Features(values=steps.astype(jnp.int8).reshape(tokens.shape), scale=scale)


def restored(features: Features, dtype: DTypeLike) -> Float[Array, "B T P D"]:
    """Turn what is kept into tokens."""
    if features.scale is None:
        return features.values.astype(dtype)
    grouped = _grouped(features.values.astype(jnp.float32), features.scale.shape[-1])
    return (grouped * features.scale[..., None]).reshape(features.values.shape).astype(dtype)


def seen_in(model: Calce, batch: Batch) -> Float[Array, "B T P D"]:
    """Return what the tower gives of a batch's frames: kept, where the batch brings that, or else computed."""
    if batch.features is None:
        return model.see(batch.frames)
    return jax.lax.stop_gradient(restored(batch.features, model.config.dtype))


def _grouped(tokens: Any, groups: int) -> Float[Array, "B T P G E"]:
    return tokens.reshape(*tokens.shape[:-1], groups, -1)
