"""Attention, in one place, so that another implementation can take over everywhere at once.

    "xla"    products and a softmax, which the compiler may fuse; the one that the others are compared with
    "dpa"    `jax.nn.dot_product_attention`: cuDNN's fused kernel on NVIDIA GPUs in half precision, XLA elsewhere
    "flash"  Pallas' flash attention for TPUs, where scores never leave the chip

Scores and softmax are float32 in all of them. A fused kernel does not do everything; "xla" does what is left: weights
that drop, and for "flash" queries with masks of their own and short sequences. A token's few queries about what a
decoder keeps are a matter of layout, and in `models.kept`, whatever is chosen here.

Dimensions: B batch, Q query positions, L key positions, N heads, H head width.
"""

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from calce_jax.distributed.sharding import BATCH
from calce_jax.models.layers import Key, dropout

Implementation = Literal["xla", "dpa", "flash"]

# Positions that "flash" takes at a time, and the fewest it is worth starting for: both axes are padded to blocks.
BLOCK, SHORTEST = 256, 512


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
    implementation: Implementation = "xla",
) -> Float[Array, "B Q N H"]:
    """Softmax(scale * query key^T + bias) value, with float32 scores and softmax.

    Args:
      query, key, value: projections split into heads.
      scale: 1/sqrt(H) for ViT and BERT, 1 for T5.
      bias: added to the scores (T5's relative positions).
      mask: True where a key may be looked at. A row with no such key gives some mean of values: finite, and unused.
      drop, drop_key: dropout on the attention weights.
      implementation: who computes it. "flash" compiles for TPUs alone.
    """
    dropping = drop_key is not None and drop > 0.0
    if implementation == "dpa" and not dropping:
        return _dot_product(query, key, value, scale=scale, bias=bias, mask=mask)
    long = min(query.shape[1], key.shape[1]) >= SHORTEST
    if implementation == "flash" and not dropping and long and (mask is None or mask.shape[1] == 1):
        return _flash(query, key, value, scale=scale, bias=bias, mask=mask)
    # Heads before positions: the layout in which every backend has a fast batched product.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    scores = jnp.einsum("bnqh,bnlh->bnql", query, key, preferred_element_type=jnp.float32) * scale
    weights = dropout(weigh(scores, bias, mask), drop, drop_key).astype(value.dtype)
    return jnp.swapaxes(jnp.einsum("bnql,bnlh->bnqh", weights, value), 1, 2)


def weigh(
    scores: Float[Array, "B N Q L"],
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B #Q L"] | None,
) -> Float[Array, "B N Q L"]:
    """Return the weights of attention, in float32."""
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        # Added, not put in their place, so that the gradient need not keep the mask of every pair. The sum is the same.
        scores = scores + jnp.where(mask[:, None], 0.0, jnp.finfo(jnp.float32).min)
    return _softmax(scores)


def split_heads(x: Float[Array, "B L D"], heads: int) -> Float[Array, "B L N H"]:
    """Cut the width into heads."""
    return x.reshape(*x.shape[:2], heads, -1)


def join_heads(x: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
    """Undo `split_heads`."""
    return x.reshape(*x.shape[:2], -1)


@jax.custom_jvp
def _softmax(scores: Float[Array, "B N Q L"]) -> Float[Array, "B N Q L"]:
    """Softmax over the keys. Its gradient keeps the result alone; that of `jax.nn.softmax` keeps two such arrays."""
    return jax.nn.softmax(scores, axis=-1)


@_softmax.defjvp
def _softmax_slope(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    weights, change = _softmax(primals[0]), tangents[0]
    return weights, weights * (change - (weights * change).sum(-1, keepdims=True))


def _dot_product(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    *,
    scale: float,
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B #Q L"] | None,
) -> Float[Array, "B Q N H"]:
    fused = jax.default_backend() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16)
    # It makes a bias of the mask, and does not stretch a bias along the queries (jax issue 28974).
    pairs = query.shape[1], key.shape[1]
    if bias is not None:
        # cuDNN wants the bias in the dtype of the rest; a wider one made its gradients infinite (jax issue 32242).
        bias = bias.astype(query.dtype if fused else jnp.float32)
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], *pairs))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], *pairs))[:, None]
    return jax.nn.dot_product_attention(
        query, key, value, bias, mask, scale=scale, implementation="cudnn" if fused else "xla"
    )


def _flash(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    *,
    scale: float,
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B 1 L"] | None,
) -> Float[Array, "B Q N H"]:
    (batch, queries, heads, _), keys = query.shape, key.shape[1]
    seen = jnp.ones((batch, keys), bool) if mask is None else jnp.broadcast_to(mask[:, 0], (batch, keys))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], heads, queries, keys))
    run = partial(_flash_on_device, scale=scale)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and not mesh.manual_axes:
        # The compiler cannot split a kernel over devices by itself.
        split, bias_split = P(BATCH, None, "tensor"), P(None if bias is None or bias.shape[0] == 1 else BATCH, "tensor")
        run = jax.shard_map(run, in_specs=(split, split, split, bias_split, P(BATCH)), out_specs=split, check_vma=False)
    return run(query, key, value, bias, seen)


def _flash_on_device(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    bias: Float[Array, "#B N Q L"] | None,
    seen: Bool[Array, "B L"],
    *,
    scale: float,
) -> Float[Array, "B Q N H"]:
    # Importing Pallas takes a second, which nobody else should wait for.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel  # noqa: PLC0415

    batch, queries = query.shape[:2]
    beyond_q, beyond_k = (-length % BLOCK for length in (queries, key.shape[1]))
    query, key, value = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, beyond), (0, 0)))
        for x, beyond in ((query, beyond_q), (key, beyond_k), (value, beyond_k))
    )
    if bias is not None:
        # The kernel scales after it has added the bias. T5's needs none of that, and stays as narrow as it is.
        bias = bias if scale == 1.0 else bias.astype(jnp.float32) / scale
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, beyond_q), (0, beyond_k)))
        bias = jnp.broadcast_to(bias, (batch, *bias.shape[1:]))
    segments = kernel.SegmentIds(
        q=jnp.ones((batch, query.shape[2]), jnp.int32),
        kv=jnp.pad(seen, ((0, 0), (0, beyond_k))).astype(jnp.int32),
    )
    blocks = kernel.BlockSizes(BLOCK, BLOCK, BLOCK, 1, *(BLOCK,) * 7)
    found = kernel.flash_attention(query, key, value, bias, segments, sm_scale=scale, block_sizes=blocks)
    return jnp.swapaxes(found[:, :, :queries], 1, 2)
