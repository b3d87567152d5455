"""The costs that are read from a compiled program, on programs whose costs are known."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from absl import flags

import calce_jax
from benchmarks.aot import parts
from benchmarks.aot.hlo import parse_hlo
from benchmarks.aot.parts import table
from benchmarks.aot.roofline import LINK_BYTES_PER_S, MEMORY_BYTES_PER_S, PARTS, PEAK_FLOP_PER_S, operations
from benchmarks.aot.targets import MissingCompilerError

# A loop over five blocks, whose weights are gathered in each, beside products of which one has an adapter.
PROGRAM = """HloModule jit_step, is_scheduled=true

%sliced (param_0: bf16[5,8,16], param_1: s32[]) -> bf16[8,16] {
  %param_0 = bf16[5,8,16]{2,1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %constant.1 = s32[] constant(0)
  %dynamic-slice.1 = bf16[1,8,16]{2,1,0} dynamic-slice(%param_0, %param_1, %constant.1, %constant.1), dynamic_slice_sizes={1,8,16}
  ROOT %bitcast.1 = bf16[8,16]{1,0} bitcast(%dynamic-slice.1)
}

%body (arg: (s32[], bf16[4,32], bf16[5,8,16])) -> (s32[], bf16[4,32], bf16[5,8,16]) {
  %arg = (s32[], bf16[4,32]{1,0}, /*index=2*/bf16[5,8,16]{2,1,0}) parameter(0)
  %i = s32[] get-tuple-element(%arg), index=0
  %x = bf16[4,32]{1,0} get-tuple-element(%arg), index=1
  %stack = bf16[5,8,16]{2,1,0} get-tuple-element(%arg), index=2
  %fusion.1 = bf16[8,16]{1,0} fusion(%stack, %i), kind=kLoop, calls=%sliced, metadata={op_name="jit(step)/jvp(t5_encoder)/while/body/dynamic_slice"}
  %all-gather-start.1 = (bf16[8,16]{1,0}, bf16[32,16]{1,0}) all-gather-start(%fusion.1), dimensions={0}, metadata={op_name="jit(step)/jvp(t5_encoder)/while/body/dot_general"}
  %copy.1 = bf16[4,32]{0,1} copy(%x), metadata={op_name="jit(step)/jvp(t5_encoder)/while/body/transpose"}
  %all-gather-done.1 = bf16[32,16]{1,0} all-gather-done(%all-gather-start.1)
  %product.1 = (bf16[4,16]{1,0}, s8[4194304]{0}) custom-call(%copy.1, %all-gather-done.1), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step)/transpose(jvp(t5_encoder))/while/body/dot_general"}, backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]},"precision_config":{"operand_precision":["DEFAULT","DEFAULT"]}}}
  ROOT %tuple.1 = (s32[], bf16[4,32]{1,0}, bf16[5,8,16]{2,1,0}) tuple(%i, %x, %stack)
}

%condition (arg.1: (s32[], bf16[4,32], bf16[5,8,16])) -> pred[] {
  %arg.1 = (s32[], bf16[4,32]{1,0}, bf16[5,8,16]{2,1,0}) parameter(0)
  ROOT %constant.2 = pred[] constant(true)
}

ENTRY %main (p0: bf16[4,32], p1: bf16[5,8,16], p2: f32[1000,1000]) -> f32[1000,1000] {
  %p0 = bf16[4,32]{1,0} parameter(0)
  %p1 = bf16[5,8,16]{2,1,0} parameter(1)
  %p2 = f32[1000,1000]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %tuple.2 = (s32[], bf16[4,32]{1,0}, bf16[5,8,16]{2,1,0}) tuple(%zero, %p0, %p1)
  %while.1 = (s32[], bf16[4,32]{1,0}, bf16[5,8,16]{2,1,0}) while(%tuple.2), condition=%condition, body=%body, TRIPS
  ROOT %dot.1 = f32[1000,1000]{1,0} dot(%p2, %p2), lhs_contracting_dims={1}, rhs_contracting_dims={0}, operand_precision={highest,highest}, metadata={op_name="jit(step)/selection/captions/dot_general"}
}
"""  # noqa: E501
KNOWN = PROGRAM.replace("TRIPS", 'backend_config={"known_trip_count":{"n":"5"}}')


def test_every_operation_is_counted_as_often_as_it_is_executed():
    found = operations(parse_hlo(KNOWN))
    assert [(each.kind, each.part, each.is_backward, each.count) for each in found] == [
        ("element-wise", "t5_encoder", False, 5),
        ("collective", "t5_encoder", False, 5),
        ("copy", "t5_encoder", False, 5),
        ("product", "t5_encoder", True, 5),
        ("product", "captions", False, 1),  # of nested scopes the innermost
    ]
    sliced, gathered, copied, product, exact = found
    # Of the stack of weights, one slice is read, at an index; work space of a product is not.
    assert sliced.bytes == 5 * (2 * 8 * 16 * 2 + 4)
    assert copied.bytes == 5 * 2 * 4 * 32 * 2
    assert (product.flop, product.bytes) == (5 * 2 * 4 * 32 * 16, 5 * 2 * (4 * 32 + 32 * 16 + 4 * 16))
    assert gathered.received == 5 * (32 - 8) * 16 * 2
    # The copy hides the gathering, in part.
    assert gathered.hidden == copied.seconds == pytest.approx(copied.bytes / MEMORY_BYTES_PER_S)
    assert (exact.flop, exact.seconds) == (2e9, pytest.approx(2e9 / PEAK_FLOP_PER_S["f32"]))


@pytest.mark.parametrize(
    ("groups", "share"),
    [("{{0,1,2,3}}", 3 / 4), ("{{0,1},{2,3}}", 1 / 2), ("[2,4]<=[8]", 3 / 4), ("[4,2]<=[2,4]T(1,0)", 1 / 2), ("{}", 1)],
)
def test_what_an_all_reduce_receives_depends_on_the_size_of_its_groups(groups, share):
    program = f"""HloModule jit_step

ENTRY %main (p0: f32[1000]) -> f32[1000] {{
  %p0 = f32[1000]{{0}} parameter(0)
  ROOT %all-reduce.1 = f32[1000]{{0}} all-reduce(%p0), channel_id=1, replica_groups={groups}, to_apply=%add
}}
"""
    (found,) = operations(parse_hlo(program))
    assert found.received == pytest.approx(2 * 4000 * share)


def test_a_loop_of_unknown_length_has_the_number_of_iterations_given():
    module = parse_hlo(PROGRAM.replace(", TRIPS", ""))
    for count in (1, 7):
        assert [each.count for each in operations(module, while_trip_count=count)] == [count] * 4 + [1]


def test_an_update_in_place_moves_the_update_alone():
    def write(cache, token, limit):
        def step(carry):
            i, cache = carry
            return i + 1, jax.lax.dynamic_update_slice(cache, token, (i, 0))

        return jax.lax.while_loop(lambda carry: carry[0] < limit, step, (0, cache))[1]

    shapes = [jax.ShapeDtypeStruct(shape, "float32") for shape in ((1000, 64), (1, 64))]
    shapes.append(jax.ShapeDtypeStruct((), "int32"))
    module = parse_hlo(jax.jit(write, donate_argnums=0).lower(*shapes).compile().as_text())
    once, twice = (sum(each.bytes for each in operations(module, while_trip_count=count)) for count in (1, 2))
    assert 0 < twice - once < 2000


def test_products_in_a_program_of_this_machine_are_those_of_the_function():
    def forward(x, weights):
        with jax.named_scope("vit"):
            return jax.lax.scan(lambda x, weight: (jnp.tanh(x @ weight), None), x, weights)[0]

    shapes = jax.ShapeDtypeStruct((64, 128), "float32"), jax.ShapeDtypeStruct((6, 128, 128), "float32")
    found = operations(parse_hlo(jax.jit(forward).lower(*shapes).compile().as_text()))
    assert sum(each.flop for each in found if each.part == "vit") == 6 * 2 * 64 * 128 * 128


def test_the_table_has_a_line_for_each_part_and_says_what_waits():
    lines = list(
        table(
            operations(
                parse_hlo(KNOWN.replace("bf16[8,16]", "bf16[8000,16]").replace("bf16[32,16]", "bf16[320000,16]"))
            )
        )
    )
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| part",
        "| captions",
        "| t5_encoder",
        "| t5_encoder, gradient",
        "| all",
    ]
    received = 5 * (320000 - 8000) * 16 * 2
    assert (
        f"* t5_encoder: 5 all-gather, {received / 1e9:.2f} GB, {1e3 * received / LINK_BYTES_PER_S:.1f} ms" in lines[-1]
    )


def test_the_parts_are_the_named_scopes_of_the_package():
    package = Path(calce_jax.__file__).parent
    found = {name for path in package.rglob("*.py") for name in re.findall(r'named_scope\("(\w+)"\)', path.read_text())}
    assert found == set(PARTS)


def test_a_missing_compiler_is_one_line(monkeypatch):
    def compile_case(case, config):
        raise MissingCompilerError(f"{case.target}: jax_plugins.xla_cuda12 is not installed; run `make aot`")

    monkeypatch.setattr(parts, "compile_case", compile_case)
    flags.FLAGS(["parts"])
    with pytest.raises(SystemExit, match=r"^a100x4: jax_plugins.xla_cuda12 is not installed; run `make aot`$"):
        parts.main(["parts"])


def test_a_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_hlo("HloModule jit_step\n")
