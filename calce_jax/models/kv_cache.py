"""Keys and values that a decoder keeps from token to token, and attention to them.

They are laid out as the products of a token's step want them: heads first, and of keys the positions last. Keys that
lie one after the other are turned by every product with them, which took as long again as reading them.

Dimensions: B batch, Q query positions, L kept positions, S new positions, N heads, H head width.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from calce_jax.models.attention import attention_weights


@struct.dataclass
class KVCache:
    """Keys and values of some positions."""

    key: Float[Array, "B N H L"]
    value: Float[Array, "B N L H"]

    @staticmethod
    def from_projections(key: Float[Array, "B L N H"], value: Float[Array, "B L N H"]) -> "KVCache":
        """Keep projections."""
        return KVCache(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))

    def init(self, length: int) -> "KVCache":
        """Return room for other positions of the same sample: zeros."""
        key = jnp.zeros((*self.key.shape[:3], length), self.key.dtype)
        return KVCache(key, jnp.swapaxes(key, 2, 3))

    def update(
        self, key: Float[Array, "B S N H"], value: Float[Array, "B S N H"], cache_index: Int[Array, ""]
    ) -> "KVCache":
        """Return this with the projections of positions `cache_index` .. `cache_index` + S."""
        projected, update_slice = KVCache.from_projections(key, value), jax.lax.dynamic_update_slice_in_dim
        return KVCache(
            update_slice(self.key, projected.key, cache_index, axis=3),
            update_slice(self.value, projected.value, cache_index, axis=2),
        )


@struct.dataclass
class LayerCache:
    """What one decoder block need not compute again: of the encoder's result, and of the tokens so far."""

    cross_attention: KVCache
    self_attention: KVCache

    def update_self(
        self, key: Float[Array, "B S N H"], value: Float[Array, "B S N H"], cache_index: Int[Array, ""]
    ) -> "LayerCache":
        """Return the cache with the projections of tokens `cache_index` .. `cache_index` + S."""
        return replace(self, self_attention=self.self_attention.update(key, value, cache_index))


def cached_attention(
    cache: KVCache,
    query: Float[Array, "B Q N H"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B #N #Q L"] | None = None,
    mask: Bool[Array, "#B #Q L"] | None = None,
) -> Float[Array, "B Q N H"]:
    """Do as `attention` does, without dropout, for the few queries of a token."""
    scores = jnp.einsum("bqnh,bnhl->bnql", query, cache.key, preferred_element_type=jnp.float32) * scale
    weights = attention_weights(scores, bias, mask).astype(cache.value.dtype)
    return jnp.swapaxes(jnp.einsum("bnql,bnlh->bnqh", weights, cache.value), 1, 2)
