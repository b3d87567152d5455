"""Compiling for machines that are not here. What needs their compilers (extra `aot`) skips without, and names them."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.aot import measure as measure_module
from benchmarks.aot.budgets import RUNS, CompileCase, cases
from benchmarks.aot.flops import count_flops
from benchmarks.aot.measure import measure, scale_batch_to_chips
from benchmarks.aot.programs import (
    ANSWER_TOKENS,
    LONGEST_VIDEO,
    PROGRAMS,
    SEARCH_ANSWER_TOKENS,
    AbstractRun,
    bytes_on_a_device,
    program_names,
)
from benchmarks.aot.run import compile_cases
from benchmarks.aot.targets import GIB, TARGETS, MissingCompilerError, Target, mesh_for, missing_compiler
from calce_jax.config import ConfigError, validate
from calce_jax.distributed.sharding import make_mesh
from calce_jax.search.searcher import TRAINED_DURATION
from calce_jax.text.prompt import answer_token_limit, max_answer_tokens
from calce_jax.text.tokenizers import load_t5
from configs.calce import get_config


def config(run):
    return validate(get_config(run))


def crash_or_refuse(run):
    """Stand for a config; called in the process that compiles."""
    if run == "qvhighlights,stage=1":
        os._exit(3)
    raise ConfigError(f"no {run}")


def test_products_count_as_often_as_they_run():
    matrix = jnp.ones((4, 8))
    square = jnp.ones((8, 8))

    def product(x):
        return x @ square

    once = 2 * 4 * 8 * 8

    def looped(x):
        x, _ = jax.lax.scan(lambda x, _: (jax.checkpoint(product)(x), None), x, length=5)
        x = jax.lax.while_loop(lambda x: x.sum() < 0, product, x)
        return jax.lax.switch(jnp.int32(0), [product, lambda x: product(product(x))], x)

    assert count_flops(jax.make_jaxpr(product)(matrix)) == once
    assert count_flops(jax.make_jaxpr(jax.jit(looped))(matrix), while_trip_count=7) == (5 + 7 + 2) * once


def test_every_program_of_every_run_has_a_budget():
    listed = list(cases())
    assert len(listed) == len({(case.target, case.name) for case in listed}) == 4 * 4 * 7 + 3 * 7 + 4 * 6
    assert all(0 < case.budget <= TARGETS[case.target].memory for case in listed)
    (half,) = [case for case in listed if case.name == "qvhighlights/stage1/train_step" and case.target == "a100x4"]
    assert half.budget == 40 * GIB


def grouped(**data):
    """A run of the tiny size that groups two batches."""
    run = config("shapes,stage=1")
    data = {"group": 2, "batch": 4, "eval_batch": 4, **data}
    return replace(run, data=replace(run.data, **data), text=replace(run.text, buckets=(96,)))


def test_the_programs_are_those_that_a_run_compiles():
    names = ["infer_encode", "infer_stack", "infer_gather", "train_step", "infer_predict"]
    searches = ["search_encode", "search_predict"]
    assert program_names(grouped()) == names + searches
    assert (
        program_names(grouped(eval_batch=8))
        == [f"train_{part}" for part in ("encode", "stack", "gather")] + names + searches
    )
    assert program_names(grouped(group=1)) == ["train_step", "infer_predict", *searches]
    assert program_names(grouped(negatives=0.2, inverted=0.2, mix=0.5)) == names + searches
    for name in RUNS:  # by default rows are grouped
        assert len(program_names(config(name))) == 7


def shapes(tree):
    return [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


@pytest.mark.slow
def test_what_grouping_makes_is_what_the_steps_take():
    mesh = make_mesh("a100x4")
    with jax.set_mesh(mesh):
        run = AbstractRun(grouped(), mesh)
        programs = {name: PROGRAMS[name](run) for name in program_names(run.config)}
        assert shapes(run.training_batch) == shapes(run.prediction_batch)  # so that one encoding serves both
        encoded, _ = jax.eval_shape(programs["infer_encode"].function, *programs["infer_encode"].arguments)
        window = jax.eval_shape(programs["infer_stack"].function, *programs["infer_stack"].arguments)
        rows = jax.eval_shape(programs["infer_gather"].function, *programs["infer_gather"].arguments)
        ungrouped = AbstractRun(grouped(group=1), mesh)
        frames = [PROGRAMS[name](ungrouped).arguments[2].frames.shape for name in ("train_step", "infer_predict")]
    assert programs["infer_stack"].arguments == ([run.encoded(run.prediction_batch)] * 2,)
    assert shapes(programs["infer_gather"].arguments[0]) == shapes(window)
    for name in ("train_step", "infer_predict"):
        batch = programs[name].arguments[2]
        assert shapes(batch) == shapes(encoded) == shapes(rows)
        assert (batch.frames.shape, batch.features.values.shape[:2]) == ((4, 10, 0, 0, 3), (4, 10))
        # Two batches of one row on each of four devices.
        assert programs[name].resident_bytes == 2 * sum(leaf.nbytes // 4 for leaf in map(zeros, jax.tree.leaves(batch)))
    assert frames == [(4, 10, 56, 56, 3)] * 2
    assert [programs[name].decoding_steps for name in ("infer_predict", "search_predict")] == [51, 51]
    assert programs["search_encode"].arguments[2].shape == (4, 10, 56, 56, 3)


@pytest.mark.slow
def test_weights_that_a_program_does_not_use_count(monkeypatch):
    target = Target("cpu", "cpu", "1x1x1", 80 * GIB, mesh=(1, 1, 1))
    monkeypatch.setitem(TARGETS, "cpu", target)
    monkeypatch.setattr(measure_module, "mesh_for", lambda _: make_mesh("single"))
    row = measure(CompileCase("cpu", "shapes,stage=1", "search_encode", GIB), grouped(group=1))
    mesh = make_mesh("single")
    with jax.set_mesh(mesh):
        run = AbstractRun(grouped(group=1), mesh)
    weights = bytes_on_a_device((run.trainable, run.frozen))
    assert bytes_on_a_device(run.frozen["t5"]) > weights / 2  # which a search's encoding does not need
    assert row.bytes_per_chip is not None
    assert row.temp_bytes is not None
    assert row.bytes_per_chip - row.temp_bytes > weights


@pytest.mark.release
@pytest.mark.parametrize("group", [1, 2])
def test_every_program_is_traced_at_the_tiny_size(group):
    mesh = make_mesh("a100x4")
    with jax.set_mesh(mesh):
        run = AbstractRun(grouped(group=group), mesh)
        for name in program_names(run.config):
            program = PROGRAMS[name](run)
            flops = count_flops(program.function.trace(*program.arguments).jaxpr)
            assert (flops > 0) == (name not in ("infer_stack", "infer_gather"))


@pytest.mark.slow
def test_a_run_with_a_grammar_decodes_with_it():
    run = grouped(group=1)
    constrained = replace(run, generation=replace(run.generation, constrain=True))
    mesh = make_mesh("single")
    with jax.set_mesh(mesh):
        assert AbstractRun(run, mesh).program_config.grammar is None
        grammar = AbstractRun(constrained, mesh).program_config.grammar
    assert grammar is not None
    assert grammar.max_second == 40


def zeros(abstract):
    return np.zeros(abstract.shape, abstract.dtype)


def test_answers_are_as_long_as_the_longest_video_needs(shared):
    t5 = load_t5(shared / "tokenizers/t5")
    assert {name: max_answer_tokens(t5, seconds) for name, seconds in LONGEST_VIDEO.items()} == ANSWER_TOKENS
    assert {name: answer_token_limit(t5, seconds) for name, seconds in TRAINED_DURATION.items()} == SEARCH_ANSWER_TOKENS


def test_batches_are_shared_by_the_chips_there_are():
    run = config("qvhighlights,stage=1")
    assert [scale_batch_to_chips(run, chips).data.batch for chips in (1, 4, 16)] == [1, 4, 16]
    assert scale_batch_to_chips(run, 1).data.eval_batch == 1
    assert scale_batch_to_chips(run, 4).text.buckets == (max(run.text.buckets),)


def test_a_target_whose_compiler_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingCompilerError, match=r"v5e-2x2: libtpu is not installed; run `make aot`"):
        mesh_for(TARGETS["v5e-2x2"])
    assert missing_compiler(Target("any", "cuda", "1x1x1", GIB)).startswith("any: jax_plugins.xla_cuda12")


@pytest.mark.release
def test_a_compiler_that_crashes_fails_one_row_and_no_more():
    asked = [CompileCase("v5e-2x2", run, "infer_predict", GIB) for run in RUNS[:2]]
    crashed, refused = compile_cases(asked, crash_or_refuse, timeout=300.0)
    assert (crashed.ok, crashed.program, crashed.error) == (
        False,
        "qvhighlights/stage1/infer_predict",
        "the compiler's process ended with code 3",
    )
    assert refused.error == "ConfigError: no qvhighlights,stage=2"
    assert "FAILED  ConfigError: no qvhighlights,stage=2" in refused.line()


@pytest.mark.release
@pytest.mark.parametrize("target", ["a100x4", "v5e-2x2"])
def test_the_vision_tower_fits(target, monkeypatch):
    # `make` puts what compiles for GPUs there.
    compilers = str(Path(sys.prefix) / "compilers")
    monkeypatch.syspath_prepend(compilers)
    monkeypatch.setenv("PYTHONPATH", compilers, prepend=os.pathsep)
    if missing := missing_compiler(TARGETS[target]):
        pytest.skip(missing)
    case = CompileCase(target, "charades_sta,stage=1", "search_encode", 16 * GIB)
    (row,) = compile_cases([case], config, timeout=300.0)
    assert not row.error
    assert row.ok
    assert row.bytes_per_chip > row.temp_bytes > 0
    # 240 frames of 257 tokens; a token meets 0.98 B weights, and 2 x 257 others in each of 39 blocks. The Q-Former has
    # 0.19 B weights, and a third as many products.
    assert row.flops == pytest.approx(2 * 240 * 257 * (0.98e9 + 39 * 2 * 257 * 1408), rel=0.1)
