"""Keys and values cached between decoding steps, and attention to them.

Keys are stored (B, N, H, L) and values (B, N, L, H), as the matrix products of a decoding step read them; keys stored
(B, L, N, H) need a transpose at every step, which doubled its time.

Dimensions: B batch, Q query positions, L cached positions, S new positions, N heads, H head width.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calce_jax.models.attention import attention_weights
from calce_jax.models.products import einsum, matmul_precision


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KVCache:
    """Keys and values of L positions."""

    key: Float[Array, "B N H L"]
    value: Float[Array, "B N L H"]

    @staticmethod
    def from_projections(key: Float[Array, "B L N H"], value: Float[Array, "B L N H"]) -> "KVCache":
        """Return a cache that holds these projections."""
        return KVCache(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))

    def init(self, length: int) -> "KVCache":
        """Return a cache of zeros with the same B, N, H and dtype for `length` positions."""
        key = jnp.zeros((*self.key.shape[:3], length), self.key.dtype)
        return KVCache(key, jnp.swapaxes(key, 2, 3))

    def update(
        self, key: Float[Array, "B S N H"], value: Float[Array, "B S N H"], cache_index: Int[Array, ""]
    ) -> "KVCache":
        """Return the cache with positions `cache_index` .. `cache_index` + S replaced."""
        projected, update_slice = KVCache.from_projections(key, value), jax.lax.dynamic_update_slice_in_dim
        return KVCache(
            update_slice(self.key, projected.key, cache_index, axis=3),
            update_slice(self.value, projected.value, cache_index, axis=2),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerCache:
    """The caches of one decoder block: of the encoder's output, and of the tokens so far."""

    cross_attention: KVCache
    self_attention: KVCache

    def update_self(
        self, key: Float[Array, "B S N H"], value: Float[Array, "B S N H"], cache_index: Int[Array, ""]
    ) -> "LayerCache":
        """Return the cache with self-attention positions `cache_index` .. `cache_index` + S replaced."""
        return replace(self, self_attention=self.self_attention.update(key, value, cache_index))


def cached_attention(
    cache: KVCache,
    query: Float[Array, "B Q N H"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B #N #Q L"] | None = None,
    mask: Bool[Array, "#B #Q L"] | None = None,
) -> Float[Array, "B Q N H"]:
    """Compute the same as `attention`, without dropout, for the few queries of a decoding step."""
    weights = cached_attention_weights(cache, query, scale=scale, bias=bias, mask=mask).astype(cache.value.dtype)
    return jnp.swapaxes(einsum("bnql,bnlh->bnqh", weights, cache.value), 1, 2)


def cached_attention_weights(
    cache: KVCache,
    query: Float[Array, "B Q N H"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B #N #Q L"] | None = None,
    mask: Bool[Array, "#B #Q L"] | None = None,
) -> Float[Array, "B N Q L"]:
    """Return the float32 weights with which `cached_attention` averages the values."""
    scores = jnp.einsum(
        "bqnh,bnhl->bnql",
        query,
        cache.key,
        precision=matmul_precision(query.dtype),
        preferred_element_type=jnp.float32,
    )
    return attention_weights(scores * scale, bias, mask)
