"""Options of the compiler: on a CPU no float32 copy of frozen bfloat16 weights."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from calce_jax.distributed.compiler_options import compiler_options
from calce_jax.distributed.sharding import make_mesh
from calce_jax.models.t5 import T5, T5Config

CONFIG = T5Config(width=64, heads=4, head_width=16, mlp_width=512, encoder_depth=16, decoder_depth=1, vocab=32)


def temporary_bytes(dtype: str, options: dict[str, str] | None) -> int:
    """Return the memory for temporaries of an encoder on eight positions, whose weights are of a dtype."""
    graph, params = nnx.split(nnx.eval_shape(lambda: T5(CONFIG, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype)), params)
    x, mask = jax.ShapeDtypeStruct((1, 8, 64), jnp.dtype(dtype)), jax.ShapeDtypeStruct((1, 8), jnp.dtype(bool))
    encode = jax.jit(lambda params, x, mask: nnx.merge(graph, params).encode(x, mask), compiler_options=options)
    return encode.lower(params, x, mask).compile().memory_analysis().temp_size_in_bytes


def test_weights_are_converted_block_by_block():
    stack = 16 * 4 * (4 * 64 * 64 + 3 * 64 * 512)  # bytes of the encoder in float32
    assert temporary_bytes("bfloat16", None) > stack  # a newer XLA that does not need the option fails here
    assert temporary_bytes("bfloat16", compiler_options(make_mesh("single"), "bfloat16")) < stack / 4


@pytest.mark.parametrize(("mesh", "dtype"), [("single", "float32"), ("data", "float32")])
def test_float32_has_nothing_to_convert(mesh, dtype):
    assert compiler_options(make_mesh(mesh), dtype) is None
