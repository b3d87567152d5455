"""Attention, in three implementations that a config selects for all towers.

    "xla"    matrix products and a softmax, which the compiler may fuse, on a CPU for a few heads at a time
             (`calce_jax.models.chunked_attention`); the reference for the other two
    "dpa"    `jax.nn.dot_product_attention`: cuDNN's fused kernel on NVIDIA GPUs in half precision, XLA elsewhere
    "flash"  Pallas' flash attention for TPUs, which never writes the scores to memory

Scores and softmax are float32 in all of them. What a fused kernel does not support falls back to "xla": dropout on the
weights, and for "flash" also a mask per query and short sequences. Decoding with a cache always uses
`calce_jax.models.kv_cache.cached_attention`.

Dimensions: B batch, Q query positions, L key positions, N heads, H head width.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from calce_jax.config import AttentionImplementation
from calce_jax.distributed.sharding import BATCH_AXES
from calce_jax.distributed.target import target_platform
from calce_jax.models.chunked_attention import attend_in_chunks
from calce_jax.models.layers import Key, dropout
from calce_jax.models.products import einsum, matmul_precision

# Block of positions of "flash", to which both axes are padded, and the length below which it falls back to "xla".
FLASH_BLOCK_SIZE, FLASH_MIN_LENGTH = 256, 512


def attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    *,
    scale: float = 1.0,
    bias: Float[Array, "#B #N #Q L"] | None = None,
    mask: Bool[Array, "#B #Q L"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key = None,
    implementation: AttentionImplementation = "xla",
) -> Float[Array, "B Q N H"]:
    """Softmax(scale * query key^T + bias) value, with float32 scores and softmax.

    Args:
      query, key, value: projections split into heads.
      scale: 1/sqrt(H) for ViT and BERT, 1 for T5.
      bias: added to the scores (T5's relative positions).
      mask: True where a query attends to a key. A row without any gives a mean of values: finite and meaningless.
      dropout_rate, dropout_key: dropout on the attention weights; none without a key.
      implementation: see the module; "flash" compiles for TPUs only.
    """
    use_dropout = dropout_key is not None and dropout_rate > 0.0
    if implementation == "dpa" and not use_dropout:
        return _dot_product_attention(query, key, value, scale=scale, bias=bias, mask=mask)
    long_enough = min(query.shape[1], key.shape[1]) >= FLASH_MIN_LENGTH
    if implementation == "flash" and not use_dropout and long_enough and (mask is None or mask.shape[1] == 1):
        return _flash_attention(query, key, value, scale=scale, bias=bias, mask=mask)
    # Heads before positions: the layout with a fast batched product on every backend.
    query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
    attend = partial(_attend, scale=scale, dropout_rate=dropout_rate, dropout_key=dropout_key)
    if not use_dropout and target_platform() == "cpu":
        attend = partial(attend_in_chunks, attend)
    return jnp.swapaxes(attend(query, key, value, bias=bias, mask=mask), 1, 2)


def _attend(
    query: Float[Array, "B N Q H"],
    key: Float[Array, "B N L H"],
    value: Float[Array, "B N L H"],
    *,
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B #Q L"] | None,
    scale: float,
    dropout_rate: float,
    dropout_key: Key,
) -> Float[Array, "B N Q H"]:
    precision = matmul_precision(query.dtype)
    scores = jnp.einsum("bnqh,bnlh->bnql", query, key, precision=precision, preferred_element_type=jnp.float32) * scale
    weights = dropout(attention_weights(scores, bias, mask), dropout_rate, dropout_key).astype(value.dtype)
    return einsum("bnql,bnlh->bnqh", weights, value)


def attention_weights(
    scores: Float[Array, "B N Q L"],
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B #Q L"] | None,
) -> Float[Array, "B N Q L"]:
    """Return softmax(scores + bias) over the keys that the mask admits, in float32."""
    if bias is not None:
        scores = scores + bias.astype(jnp.float32)
    if mask is not None:
        # Added instead of selected, so that the gradient need not keep a mask of every pair; the weights are the same.
        scores = scores + jnp.where(mask[:, None], 0.0, jnp.finfo(jnp.float32).min)
    return _softmax(scores)


def split_heads(x: Float[Array, "B L D"], heads: int) -> Float[Array, "B L N H"]:
    """Split the width D into N heads of H = D / N."""
    return x.reshape(*x.shape[:2], heads, -1)


def join_heads(x: Float[Array, "B L N H"]) -> Float[Array, "B L D"]:
    """Undo `split_heads`."""
    return x.reshape(*x.shape[:2], -1)


@jax.custom_jvp
def _softmax(scores: Float[Array, "B N Q L"]) -> Float[Array, "B N Q L"]:
    """Softmax over the keys. Its gradient keeps only the result; that of `jax.nn.softmax` keeps two such arrays."""
    return jax.nn.softmax(scores, axis=-1)


@_softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    weights, tangent = _softmax(primals[0]), tangents[0]
    return weights, weights * (tangent - (weights * tangent).sum(-1, keepdims=True))


def _dot_product_attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    *,
    scale: float,
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B #Q L"] | None,
) -> Float[Array, "B Q N H"]:
    use_cudnn = target_platform() == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16)
    # The function turns the mask into a bias, and does not broadcast a bias along the queries (jax issue 28974).
    score_shape = query.shape[1], key.shape[1]
    if bias is not None:
        # cuDNN needs the bias in the dtype of the query; a wider one made its gradients infinite (jax issue 32242).
        bias = bias.astype(query.dtype if use_cudnn else jnp.float32)
        bias = jnp.broadcast_to(bias, (*bias.shape[:2], *score_shape))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (mask.shape[0], *score_shape))[:, None]
    # It takes no precision; the context gives its products, and those of their gradient, the one of `attention`.
    with jax.default_matmul_precision("highest" if query.dtype == jnp.float32 else "default"):
        return jax.nn.dot_product_attention(
            query, key, value, bias, mask, scale=scale, implementation="cudnn" if use_cudnn else "xla"
        )


def _flash_attention(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    *,
    scale: float,
    bias: Float[Array, "#B #N #Q L"] | None,
    mask: Bool[Array, "#B 1 L"] | None,
) -> Float[Array, "B Q N H"]:
    (batch, num_queries, heads, _), num_keys = query.shape, key.shape[1]
    key_mask = jnp.ones((batch, num_keys), bool) if mask is None else jnp.broadcast_to(mask[:, 0], (batch, num_keys))
    if bias is not None:
        bias = jnp.broadcast_to(bias, (bias.shape[0], heads, num_queries, num_keys))
    run = partial(_flash_attention_per_device, scale=scale)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and not mesh.manual_axes:
        # The compiler cannot partition a Pallas kernel over devices.
        spec, bias_spec = (
            P(BATCH_AXES, None, "tensor"),
            P(None if bias is None or bias.shape[0] == 1 else BATCH_AXES, "tensor"),
        )
        run = jax.shard_map(run, in_specs=(spec, spec, spec, bias_spec, P(BATCH_AXES)), out_specs=spec, check_vma=False)
    return run(query, key, value, bias, key_mask)


def _flash_attention_per_device(
    query: Float[Array, "B Q N H"],
    key: Float[Array, "B L N H"],
    value: Float[Array, "B L N H"],
    bias: Float[Array, "#B N Q L"] | None,
    key_mask: Bool[Array, "B L"],
    *,
    scale: float,
) -> Float[Array, "B Q N H"]:
    # Importing Pallas takes a second, and only "flash" needs it.
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel  # noqa: PLC0415

    batch, num_queries = query.shape[:2]
    pad_q, pad_k = (-length % FLASH_BLOCK_SIZE for length in (num_queries, key.shape[1]))
    query, key, value = (
        jnp.pad(jnp.swapaxes(x, 1, 2), ((0, 0), (0, 0), (0, pad_length), (0, 0)))
        for x, pad_length in ((query, pad_q), (key, pad_k), (value, pad_k))
    )
    if bias is not None:
        # The kernel scales after adding the bias. T5 has scale 1, so its bias keeps its dtype.
        bias = bias if scale == 1.0 else bias.astype(jnp.float32) / scale
        bias = jnp.pad(bias, ((0, 0), (0, 0), (0, pad_q), (0, pad_k)))
        bias = jnp.broadcast_to(bias, (batch, *bias.shape[1:]))
    segment_ids = kernel.SegmentIds(
        q=jnp.ones((batch, query.shape[2]), jnp.int32),
        kv=jnp.pad(key_mask, ((0, 0), (0, pad_k))).astype(jnp.int32),
    )
    block_sizes = kernel.BlockSizes(FLASH_BLOCK_SIZE, FLASH_BLOCK_SIZE, FLASH_BLOCK_SIZE, 1, *(FLASH_BLOCK_SIZE,) * 7)
    attended = kernel.flash_attention(query, key, value, bias, segment_ids, sm_scale=scale, block_sizes=block_sizes)
    return jnp.swapaxes(attended[:, :, :num_queries], 1, 2)
