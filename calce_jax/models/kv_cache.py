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

from calce_jax.models.attention import weigh


@struct.dataclass
class Kept:
    """Keys and values of some positions."""

    key: Float[Array, "B N H L"]
    value: Float[Array, "B N L H"]

    @staticmethod
    def of(key: Float[Array, "B L N H"], value: Float[Array, "B L N H"]) -> "Kept":
        """Keep projections."""
        return Kept(key.transpose(0, 2, 3, 1), value.transpose(0, 2, 1, 3))

    def empty(self, length: int) -> "Kept":
        """Return room for other positions of the same sample: zeros."""
        key = jnp.zeros((*self.key.shape[:3], length), self.key.dtype)
        return Kept(key, jnp.swapaxes(key, 2, 3))

    def put(self, key: Float[Array, "B S N H"], value: Float[Array, "B S N H"], at: Int[Array, ""]) -> "Kept":
        """Return this with the projections of positions `at` .. `at` + S."""
        new, place = Kept.of(key, value), jax.lax.dynamic_update_slice_in_dim
        return Kept(place(self.key, new.key, at, axis=3), place(self.value, new.value, at, axis=2))


@struct.dataclass
class LayerCache:
    """What one decoder block need not compute again: of the encoder's result, and of the tokens so far."""

    cross: Kept
    own: Kept

    def with_own(
        self, key: Float[Array, "B S N H"], value: Float[Array, "B S N H"], at: Int[Array, ""]
    ) -> "LayerCache":
        """Return the cache with the projections of tokens `at` .. `at` + S."""
        return replace(self, own=self.own.put(key, value, at))


def attention_to(
    kept: Kept,
    query: Float[Array, "B Q N H"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B #N #Q L"] | None = None,
    mask: Bool[Array, "#B #Q L"] | None = None,
) -> Float[Array, "B Q N H"]:
    """Do as `attention` does, without dropout, for the few queries of a token."""
    scores = jnp.einsum("bqnh,bnhl->bnql", query, kept.key, preferred_element_type=jnp.float32) * scale
    weights = weigh(scores, bias, mask).astype(kept.value.dtype)
    return jnp.swapaxes(jnp.einsum("bnql,bnlh->bnqh", weights, kept.value), 1, 2)
