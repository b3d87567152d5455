"""One tower of our model against the same of `transformers`, from its input to its last hidden states."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.paired import BenchmarkFn, BenchmarkSettings, ComparisonRow, check_close, compare, compile_counted


def compare_tower(
    settings: BenchmarkSettings,
    name: str,
    tower: nnx.Module,
    apply: Callable[[Any, jax.Array], jax.Array],
    *,
    inputs: jax.Array,
    theirs: BenchmarkFn,
    their_tower: Any,
    counted: nnx.Module | None = None,
) -> ComparisonRow:
    """Compare a tower on one input.

    Args:
      settings: rounds and device.
      name: of the row; dtype is added.
      tower: ours.
      apply: runs a tower of ours.
      inputs: of ours, in the dtype of the computation.
      theirs: runs the other side on the same values.
      their_tower: the `torch.nn.Module` that it runs.
      counted: the tower whose operations are counted, if those of `tower` cannot be: a fused attention is no product.
    """
    graph, params = nnx.split(tower)

    def encode(params: nnx.State, inputs: jax.Array) -> jax.Array:
        return apply(nnx.merge(graph, params), inputs)

    program = compile_counted(encode, params, inputs, options=settings.compiler_options)
    tflop = program.tflop
    if counted is not None:
        counted_graph, counted_params = nnx.split(counted)
        tflop = (
            count_flops(jax.make_jaxpr(lambda p, x: apply(nnx.merge(counted_graph, p), x))(counted_params, inputs))
            / 1e12
        )
    return compare(
        settings,
        f"{name}, {settings.dtype}",
        lambda: program.run(params, inputs),
        theirs,
        other=f"transformers ({their_tower.config._attn_implementation})",
        agreement=lambda a, b: check_close(a, b, max_difference=1e-4 if settings.dtype == "float32" else 0.1),
        compile_s=program.compile_s,
        program=program.run,
        tflop=tflop,
        their_bytes=held_bytes(their_tower),
    )


def held_bytes(module: Any) -> int:
    """Return the bytes of the parameters of a `torch.nn.Module`."""
    return sum(parameter.nbytes for parameter in module.parameters())
