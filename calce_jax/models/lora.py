"""LoRA: trained low-rank adapters that replace linear layers of a model in place.

Source: Hu et al. 2021, with the conventions of `peft` (A uniform, B zero, result scaled by alpha / rank, dropout before
A), so that adapters convert both ways.

Dimensions: Z stacked blocks, D features in, E features out, R rank.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from calce_jax.config import LoraConfig
from calce_jax.models.layers import Key, Linear, dropout
from calce_jax.models.products import matmul

LayerT = TypeVar("LayerT", bound=nnx.Module)


class LoraLinear(nnx.Module):
    """A linear layer and its adapter, with the call signature of `Linear`."""

    def __init__(self, base: Linear, config: LoraConfig, *, rngs: nnx.Rngs):
        *stacked, features_in, features_out = base.kernel.shape
        bound = features_in**-0.5
        shape = (*stacked, features_in, config.rank)
        self.base = base
        self.a = nnx.Param(jax.random.uniform(rngs.params(), shape, jnp.float32, -bound, bound))
        self.b = nnx.Param(jnp.zeros((*stacked, config.rank, features_out), jnp.float32))
        self.scale, self.dropout_rate = config.alpha / config.rank, config.dropout

    def __call__(self, x: Float[Array, "... D"], *, key: Key = None) -> Float[Array, "... E"]:
        """Return base(x) + scale dropout(x) A B."""
        # Products of two axes, as in `Linear`.
        low = matmul(dropout(x, self.dropout_rate, key).reshape(-1, x.shape[-1]), self.a[...].astype(x.dtype))
        return self.base(x) + (_lora_up(low, self.b[...].astype(x.dtype)) * self.scale).reshape(*x.shape[:-1], -1)

    def merge(self) -> Linear:
        """Add scale A B to the kernel of the base layer, in float32; return the base layer."""
        kernel = self.base.kernel[...]
        delta = jnp.matmul(self.a[...], self.b[...], precision=jax.lax.Precision.HIGHEST) * self.scale
        self.base.kernel[...] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
        return self.base


@jax.custom_vjp
def _lora_up(low: Float[Array, "L R"], b: Float[Array, "R E"]) -> Float[Array, "L E"]:
    """Return `low @ b`.

    In jax's gradient of `b` the cotangent is the first factor, and XLA transposes the first factor on a CPU, which
    copies a wide array. Here `low` is the first factor.
    """
    return matmul(low, b)


def _lora_up_forward(
    low: Float[Array, "L R"], b: Float[Array, "R E"]
) -> tuple[Float[Array, "L E"], tuple[Array, Array]]:
    return matmul(low, b), (low, b)


def _lora_up_backward(residuals: tuple[Array, Array], cotangent: Float[Array, "L E"]) -> tuple[Array, Array]:
    low, b = residuals
    return matmul(cotangent, b.T), matmul(low.T, cotangent)


_lora_up.defvjp(_lora_up_forward, _lora_up_backward)


def add_adapters(model: nnx.Module, config: LoraConfig, *, rngs: nnx.Rngs) -> None:
    """Replace every `Linear` of `model`, stacked or not, by a `LoraLinear`; in place."""
    for parent, name, layer in _find_layers(model, Linear):
        setattr(parent, name, LoraLinear(layer, config, rngs=rngs))


def merge(model: nnx.Module) -> None:
    """Replace every `LoraLinear` of `model` by its merged `Linear`; in place."""
    for parent, name, layer in _find_layers(model, LoraLinear):
        setattr(parent, name, layer.merge())


def _find_layers(model: nnx.Module, layer_type: type[LayerT]) -> list[tuple[nnx.Module, str, LayerT]]:
    return [
        (module, name, child)
        for _, module in nnx.iter_modules(model)
        if not isinstance(module, LoraLinear) or layer_type is LoraLinear
        for name, child in vars(module).items()
        if type(child) is layer_type
    ]
