"""Matrix products, with the precision that their dtype promises and in the form that is fast on each platform.

Products of float32 are float32 on every device. Products of bfloat16 are summed in float32 and rounded once.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from calce_jax.distributed.target import cpu_has_bfloat16, target_platform


def matmul_precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Return the precision of products of `dtype`: HIGHEST for float32, the device's own for narrower ones.

    By default GPUs round the factors of a float32 product to TF32 (11 bits) and TPUs to bfloat16 (8 bits), so that a
    config that says float32 would not get it. Factors of 8 bits are exact in any case, and sums are float32.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def matmul(a: Float[Array, "L D"], b: Float[Array, "D E"]) -> Float[Array, "L E"]:
    """Return `a @ b`, see `einsum`."""
    return einsum("ld,de->le", a, b)


def einsum(subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return `jnp.einsum(subscripts, a, b)` with the precision of their dtype, see `matmul_precision`.

    Args:
      subscripts: as for `jnp.einsum`, without "..."; each letter is in two or three of the terms.
      a, b: of one dtype, which the result has.
    """
    if a.dtype == jnp.bfloat16 and target_platform() == "cpu" and cpu_has_bfloat16():
        return _einsum_on_cpu(subscripts, a, b)
    return jnp.einsum(subscripts, a, b, precision=matmul_precision(a.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_on_cpu(subscripts: str, a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the product of two arrays of bfloat16, rounded by an operation of its own.

    XLA calls the processor's instructions for bfloat16 only if the result is float32. If it is bfloat16, or if one
    factor is float32, as in jax's gradient of such a product, XLA writes copies of the factors in float32 first, which
    takes twice the time, but less than this form on a processor without such instructions. On GPUs and TPUs the result
    has to be bfloat16: what follows a product is computed along with it. There is no forward mode (`jax.jvp`), which
    nothing here takes.
    """
    return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32).astype(jnp.bfloat16)


def _forward(subscripts: str, a: Array, b: Array) -> tuple[Array, tuple[Array, Array]]:
    return _einsum_on_cpu(subscripts, a, b), (a, b)


def _backward(subscripts: str, factors: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    a, b = factors
    terms, result_term = subscripts.split("->")
    a_term, b_term = terms.split(",")
    return (
        _einsum_on_cpu(f"{result_term},{b_term}->{a_term}", cotangent, b),
        _einsum_on_cpu(f"{a_term},{result_term}->{b_term}", a, cotangent),
    )


_einsum_on_cpu.defvjp(_forward, _backward)
