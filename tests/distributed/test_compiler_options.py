"""Options of the compiler: on a CPU no float32 copy of frozen bfloat16 weights."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from calce_jax.distributed import compiler_options as module
from calce_jax.distributed.compiler_options import compiler_options, options_for
from calce_jax.distributed.sharding import make_mesh
from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.t5 import T5

CONFIG = T5Config(width=64, heads=4, head_width=16, mlp_width=512, encoder_depth=16, decoder_depth=16, vocab=32)
STACK = 16 * (4 * 64 * 64 + 3 * 64 * 512)  # weights of the encoder, which has the smaller blocks


def temporary_bytes(part: str, options: dict[str, str] | None) -> int:
    """Return the memory for temporaries of a part of T5 with eight positions, in bfloat16."""
    graph, params = nnx.split(nnx.eval_shape(lambda: T5(CONFIG, rngs=nnx.Rngs(0))))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), params)
    x, mask = jax.ShapeDtypeStruct((1, 8, 64), jnp.bfloat16), jax.ShapeDtypeStruct((1, 8), jnp.dtype(bool))

    def encode(params, x, mask):
        return nnx.merge(graph, params).encode(x, mask)

    def decode(params, memory, mask):
        return beam_search(nnx.merge(graph, params), memory, mask, num_beams=1, max_length=8)

    program = jax.jit({"encode": encode, "decode": decode}[part], compiler_options=options)
    return program.lower(params, x, mask).compile().memory_analysis().temp_size_in_bytes


# A decoder reads slices of the stacked weights, which are copied once, in their own two bytes.
@pytest.mark.slow
@pytest.mark.parametrize(("part", "most"), [("encode", 1.0), ("decode", 3.0)])
def test_weights_are_converted_block_by_block(part, most):
    assert temporary_bytes(part, None) > 4 * STACK  # a newer XLA that does not need the options fails here
    assert temporary_bytes(part, compiler_options(make_mesh("single"), "bfloat16")) < most * STACK


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(module, "CONVERT_WHERE_USED", {"xla_cpu_scheduler_type": "1", "xla_cpu_no_such_option": "1"})
    assert compiler_options(make_mesh("single"), "bfloat16") == {"xla_cpu_scheduler_type": "1"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_xla_knows_the_options_for_gpus(dtype):
    apart = {"xla_gpu_dot_merger_threshold_mb": "0"}
    assert options_for("gpu", 1, dtype) == apart
    assert options_for("gpu", 4, dtype) == apart | {"xla_gpu_enable_latency_hiding_scheduler": "True"}
    assert options_for("tpu", 4, dtype) is None


@pytest.mark.parametrize("mesh", ["single", "data"])
def test_float32_has_nothing_to_convert(mesh):
    assert compiler_options(make_mesh(mesh), "float32") is None
