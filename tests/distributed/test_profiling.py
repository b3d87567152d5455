import jax
import jax.numpy as jnp
import pytest

from calce_jax.distributed.profiling import SKIPPED_STEPS, StepProfiler
from tests.helpers.traces import traced_steps


def test_a_slice_of_the_batches_is_traced(tmp_path):
    profiler = StepProfiler(tmp_path / "profile", 2, "infer")
    with profiler:
        assert list(profiler.watch(range(8))) == list(range(8))
    assert traced_steps(tmp_path / "profile", "infer") == [SKIPPED_STEPS + 1, SKIPPED_STEPS + 2]


def test_an_end_before_the_last_step_keeps_the_trace(tmp_path):
    double = jax.jit(lambda x: 2 * x)

    def stop_in_step(number):
        with StepProfiler(tmp_path / "profile", 100, "train") as profiler:
            for _ in range(number - 1):
                profiler.start_step()
                profiler.end_step(double(jnp.ones(2)))
            profiler.start_step()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_step(6)
    assert traced_steps(tmp_path / "profile", "train") == [4, 5, 6]


def test_too_few_steps_are_said(tmp_path, caplog):
    profiler = StepProfiler(tmp_path / "profile", 1, "infer")
    with profiler:
        assert list(profiler.watch("ab")) == ["a", "b"]
    assert "nothing was traced: the first 3 steps are not, and there were 2" in caplog.text
    with StepProfiler(tmp_path / "profile", 0, "infer") as profiler:
        list(profiler.watch("abcdef"))
    assert not (tmp_path / "profile").exists()
    assert caplog.text.count("nothing was traced") == 1
