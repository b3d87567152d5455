"""Compiling for machines that are not here. What needs their compilers (extra `aot`) skips without, and names them."""

import os
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.aot.budgets import RUNS, CompileCase, cases
from benchmarks.aot.flops import count_flops
from benchmarks.aot.measure import scale_batch_to_chips
from benchmarks.aot.run import compile_cases
from benchmarks.aot.targets import GIB, TARGETS, MissingCompilerError, Target, mesh_for, missing_compiler
from calce_jax.config import ConfigError, validate
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
    assert len(listed) == len({(case.target, case.name) for case in listed}) == 4 * 4 * 3 + 3 * 3 + 4 * 2
    assert all(0 < case.budget <= TARGETS[case.target].memory for case in listed)
    (half,) = [case for case in listed if case.name == "qvhighlights/stage1/train_step" and case.target == "a100x4"]
    assert half.budget == 40 * GIB


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
    asked = [CompileCase("v5e-2x2", run, "generate", GIB) for run in RUNS[:2]]
    crashed, refused = compile_cases(asked, crash_or_refuse, timeout=300.0)
    assert (crashed.ok, crashed.program, crashed.error) == (
        False,
        "qvhighlights/stage1/generate",
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
    case = CompileCase(target, "charades_sta,stage=1", "vision_encode", 16 * GIB)
    (row,) = compile_cases([case], config, timeout=300.0)
    assert not row.error
    assert row.ok
    assert row.bytes_per_chip > row.temp_bytes > 0
    # 240 frames of 257 tokens; a token meets 0.98 B weights, and 2 x 257 others in each of 39 blocks.
    assert row.flops == pytest.approx(2 * 240 * 257 * (0.98e9 + 39 * 2 * 257 * 1408), rel=0.01)
