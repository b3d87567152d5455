"""A loop over tokens gathers the decoder's weights once, not for every token."""

import jax
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.aot.hlo import parse_hlo
from benchmarks.aot.roofline import operations
from calce_jax.distributed.sharding import BATCH_AXES, abstract_like, build_mesh, param_shardings
from calce_jax.models.beam_search import beam_search
from calce_jax.models.sampling import sample_answers
from tests.helpers import tiny_model

TOKENS = 50
# For CPUs it moves the gathering out of some loops; for GPUs out of none.
NOT_BY_XLA = {"xla_disable_hlo_passes": "while-loop-invariant-code-motion"}


def decode_by_beams(t5, memory, mask):
    return beam_search(t5, memory, mask, num_beams=2, max_length=TOKENS)


def decode_by_chance(t5, memory, mask):
    return sample_answers(t5, memory, mask, jax.random.key(0), num_answers=2, max_length=TOKENS)


@pytest.mark.parametrize("decode", [decode_by_beams, decode_by_chance])
@pytest.mark.parametrize("sizes", [(1, 4, 1), (2, 2, 1)], ids=["fsdp", "data and fsdp"])
def test_weights_are_gathered_before_the_loop(decode, sizes):
    graph, weights = nnx.split(nnx.merge(*tiny_model.make_model()).t5)
    mesh = build_mesh(sizes, jax.devices())
    width = weights["shared"]["embedding"].shape[1]
    weights = abstract_like(weights, param_shardings(weights, mesh))
    rows = NamedSharding(mesh, P(BATCH_AXES))
    memory = jax.ShapeDtypeStruct((4, 24, width), "float32", sharding=rows)
    mask = jax.ShapeDtypeStruct((4, 24), "bool", sharding=rows)

    with jax.set_mesh(mesh):
        compiled = jax.jit(lambda weights, *rows: decode(nnx.merge(graph, weights), *rows)).lower(weights, memory, mask)
        module = parse_hlo(compiled.compile(compiler_options=NOT_BY_XLA).as_text())

    def received(tokens):
        return sum(each.received for each in operations(module, while_trip_count=tokens))

    decoder = sum(leaf.size * 4 for leaf in jax.tree.leaves(weights["decoder"]))
    assert received(1) > 0.3 * decoder
    # Of a token: scores and states of beams.
    assert received(2) - received(1) < 0.05 * decoder
