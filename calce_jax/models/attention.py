"""Attention, in one place, so that another implementation can take over everywhere at once.

Dimensions: B batch, Q query positions, L key positions, N heads, H head width.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from calce_jax.models.layers import Key, dropout


def attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B #N #Q L"] | None = None,
    mask: Bool[Array, "#B #Q L"] | None = None,
    drop: float = 0.0,
    drop_key: Key = None,
) -> Float[Array, "B Q N H"]:
    """Softmax(scale * query key^T + bias) value, with float32 scores and softmax.

    Args:
      query, key, value: projections split into heads.
      scale: 1/sqrt(H) for ViT and BERT, 1 for T5.
      bias: added to the scores (T5's relative positions).
      mask: True where a key may be looked at. A row with no such key gives the mean of all values: finite, and unused.
      drop, drop_key: dropout on the attention weights.
    """
    # Heads before positions: the layout in which every backend has a fast batched product.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scores = jnp.einsum("bnqh,bnlh->bnql", query, key, preferred_element_type=jnp.float32) * scale
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        scores = jnp.where(mask[:, None], scores, jnp.finfo(jnp.float32).min)
    weights = dropout(jax.nn.softmax(scores, axis=-1), drop, drop_key).astype(value.dtype)
    return jnp.swapaxes(jnp.einsum("bnql,bnlh->bnqh", weights, value), 1, 2)


def split_heads(x: Float[Array, "B L D"], heads: int) -> Float[Array, "B L N H"]:
    """Cut the width into heads."""
    return x.reshape(*x.shape[:2], heads, -1)


def join_heads(x: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
    """Undo `split_heads`."""
    return x.reshape(*x.shape[:2], -1)
