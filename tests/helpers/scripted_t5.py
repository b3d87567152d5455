"""A T5 whose logits are given, for tests of decoding."""

from typing import Any

import jax
import jax.numpy as jnp

from calce_jax.models.t5 import T5


class ScriptedT5(T5):
    """Gives the same logits after every text of the same length: `logits` (B M V), for answers of up to M tokens."""

    def __init__(self, logits: jax.Array):
        self.logits = logits

    def decoder_blocks(self) -> list[Any]:
        return []

    def init_cache(self, blocks: Any, memory: Any, num_beams: int, max_length: int) -> tuple[Any, ...]:
        return ()

    def decode_step(self, blocks: Any, ids: jax.Array, cache: Any, position: Any, **_: Any) -> tuple[jax.Array, Any]:
        batch, num_beams = ids.shape
        logits = jnp.take(self.logits, position, axis=1)[:, None]
        return jnp.broadcast_to(logits, (batch, num_beams, logits.shape[2])), cache
