"""Layers that all towers share: linear, norms, dropout, and a scan over stacked blocks.

Weights are cast to the dtype of the activations, so the dtype of a tower's input is the dtype it computes in (bfloat16
on accelerators, float32 in tests), and frozen weights may be stored in bfloat16 while trained ones stay float32. Norms
and softmax always compute in float32. Products: `calce_jax.models.products`.

Randomness is explicit: a layer with dropout takes a PRNG `key`; without one it does not drop.

Dimensions: ... any leading axes, D features in, E features out.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from calce_jax.config import RematPolicy
from calce_jax.distributed.sharding import constrain_batch
from calce_jax.models.products import matmul

Key = PRNGKeyArray | None


class Linear(nnx.Module):
    """`y = x @ kernel + bias`; the kernel (D, E) is normal with standard deviation `gain` / sqrt(D)."""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, gain: float = 1.0, rngs: nnx.Rngs):
        scale = gain * in_features**-0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (in_features, out_features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((out_features,), jnp.float32)) if bias else None

    def __call__(self, x: Float[Array, "... D"], *, key: Key = None) -> Float[Array, "... E"]:
        """Apply to the last axis. `key` is unused here: LoRA layers, which have dropout, replace this layer."""
        # Two axes: with more the gradient of a gated MLP took XLA two to three times as long on a CPU.
        y = matmul(x.reshape(-1, x.shape[-1]), self.kernel[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)
        return y if self.bias is None else y + expand_dims_to(self.bias[...].astype(x.dtype), y.ndim)


class LayerNorm(nnx.Module):
    """Normalise the last axis to mean 0 and variance 1, then scale and shift; computed in float32."""

    def __init__(self, num_features: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Return the normalised activations in the dtype of `x`."""
        x_float32 = x.astype(jnp.float32)
        centred = x_float32 - x_float32.mean(-1, keepdims=True)
        normed = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + self.eps)
        scale, bias = (expand_dims_to(p[...].astype(jnp.float32), x.ndim) for p in (self.scale, self.bias))
        return (normed * scale + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """T5's norm: no mean, no bias; computed in float32."""

    def __init__(self, num_features: int, *, eps: float):
        self.scale = nnx.Param(jnp.ones((num_features,), jnp.float32))
        self.eps = eps

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        """Return the scaled activations in the dtype of `x`."""
        x_float32 = x.astype(jnp.float32)
        normed = x_float32 * jax.lax.rsqrt(jnp.square(x_float32).mean(-1, keepdims=True) + self.eps)
        return (normed * expand_dims_to(self.scale[...].astype(jnp.float32), x.ndim)).astype(x.dtype)


class KeyStream:
    """A stream of PRNG keys derived from one key; without a key, a stream of None, which disables dropout."""

    NUM_SPLIT = 9  # one `split` of so many compiles in much less time than as many `fold_in`, and runs faster

    def __init__(self, key: Key):
        self._source, self._keys = key, iter(())

    def __call__(self) -> Key:
        """Return the next key."""
        if self._source is None:
            return None
        key = next(self._keys, None)
        if key is None:
            # The last key of a split is not given out: the next ones are split from it.
            *keys, self._source = jax.random.split(self._source, self.NUM_SPLIT)
            self._keys = iter(keys)
            key = next(self._keys)
        return key


def expand_dims_to(vector: Array, ndim: int) -> Array:
    """Add leading axes of 1 up to `ndim`, because tests forbid implicit rank promotion."""
    return vector.reshape((1,) * (ndim - 1) + vector.shape)


@jax.custom_jvp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The exact GELU, computed in float32; with erf as in the original: `jax.nn.gelu`, with erfc, is slower on CPUs.

    Its gradient keeps its slope in the dtype of `x`; jax's own would keep two arrays of float32.
    """
    return _gelu_and_slope(x)[0].astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (tangent,) = primals, tangents
    y, slope = _gelu_and_slope(x)
    return y.astype(x.dtype), tangent * slope.astype(x.dtype)


def _gelu_and_slope(x: Array) -> tuple[Array, Array]:
    x_float32 = x.astype(jnp.float32)
    below = 0.5 * (1.0 + jax.lax.erf(x_float32 * 0.5**0.5))
    density = jnp.exp(-0.5 * jnp.square(x_float32)) * (2 * jnp.pi) ** -0.5
    return x_float32 * below, below + x_float32 * density


def dropout(x: Float[Array, "..."], rate: float, key: Key) -> Float[Array, "..."]:
    """Zero a fraction `rate` of the entries and scale up the rest; without a key, return `x`."""
    if key is None or rate == 0.0:
        return x
    # 16 random bits an entry, half of what `jax.random.bernoulli` draws; drawing bits dominates the cost of dropout.
    pairs = -(-x.shape[-1] // 2)
    bits = jax.lax.bitcast_convert_type(jax.random.bits(key, (*x.shape[:-1], pairs), jnp.uint32), jnp.uint16)
    keep = bits.reshape(*x.shape[:-1], 2 * pairs)[..., : x.shape[-1]] >= round(rate * 2**16)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def stack_blocks(make_block: Callable[[nnx.Rngs], Any], depth: int, rngs: nnx.Rngs) -> Any:
    """Return `depth` blocks as one module whose parameters have a leading axis of that length."""
    return nnx.split_rngs(splits=depth)(nnx.vmap(make_block, in_axes=0, out_axes=0))(rngs)


def unstack_blocks(blocks: Any) -> list[Any]:
    """Return stacked blocks as a list, for decoding.

    A decoding step is bound by memory traffic. With weights sliced before the loop over tokens, weights and caches are
    read in place; a scan over blocks inside that loop copies both at every token.
    """
    graph, params = nnx.split(blocks)
    depth = jax.tree.leaves(params)[0].shape[0]
    return [nnx.merge(graph, jax.tree.map(lambda leaf, n=n: leaf[n], params)) for n in range(depth)]


def scan_blocks(
    blocks: Any,
    body: Callable[..., tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    *,
    key: Key = None,
    remat: RematPolicy = "none",
) -> tuple[Any, Any]:
    """Run `body(block, carry, x, key) -> (carry, y)` over stacked blocks, in order.

    Args:
      blocks: a module made by `stack_blocks`.
      body: computes one block; compiled once for any depth.
      carry: passed from block to block; its first axis is the batch, and stays sharded over the mesh.
      xs: a pytree with a leading axis of the depth, sliced for each block.
      key: split into one key a block; None disables dropout.
      remat: what the backward pass keeps: "none" everything, "dots" results of weight matmuls, "full" only the carry.

    Returns:
      The last carry, and the `y` of all blocks stacked.
    """
    graph, params = nnx.split(blocks)
    depth = jax.tree.leaves(params)[0].shape[0]
    keys = None if key is None else jax.random.split(key, depth)

    def apply_block(carry: Any, layer: Any) -> tuple[Any, Any]:
        params, x, key = layer
        carry, y = body(nnx.merge(graph, params), carry, x, key)
        return constrain_batch(carry), y

    return jax.lax.scan(apply_remat(apply_block, remat), constrain_batch(carry), (params, xs, keys))


def apply_remat(step: Callable[..., Any], remat: RematPolicy) -> Callable[..., Any]:
    """Wrap a function in `jax.checkpoint` with the policy of `remat`, see `scan_blocks`."""
    if remat == "none":
        return step
    policies = jax.checkpoint_policies
    policy = policies.nothing_saveable if remat == "full" else policies.dots_with_no_batch_dims_saveable
    return jax.checkpoint(step, policy=policy, prevent_cse=False)
