import shutil
from dataclasses import replace
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from calce_jax.checkpoints import manager
from calce_jax.checkpoints.convert.sources import run_trained_weights
from calce_jax.checkpoints.manager import CheckpointError, Checkpoints
from calce_jax.checkpoints.params_file import load_params, save_params
from calce_jax.checkpoints.restore import restore_trainables
from calce_jax.checkpoints.workdir import InitSource, checkpoint_steps, resolve_init
from calce_jax.distributed.sharding import abstract_like, make_mesh, param_shardings
from calce_jax.storage.provenance import file_hash
from calce_jax.training.state import TrainState

RULES = (("kernel$", P("fsdp", None)), ("", P()))


def make_iterator():
    return iter(grain.MapDataset.range(32).shuffle(seed=1).to_iter_dataset())


def make_state(step=3, rows=8, value=1.0):
    params = {"t5_proj": {"kernel": jnp.full((rows, 4), value), "bias": jnp.arange(4.0)}}
    return TrainState(jnp.int32(step), params, {"mu": params, "count": jnp.int32(step // 2)})


def save(workdir, state, iterator=None, metrics=None, record=None):
    checkpoints = Checkpoints(workdir)
    checkpoints.save(state, iterator or make_iterator(), record or {"seed": 42}, metrics)
    checkpoints.close()


def abstract(mesh="single", **changes):
    state = jax.eval_shape(lambda: make_state(**changes))
    return abstract_like(state, param_shardings(state, make_mesh(mesh), RULES))


def assert_equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["single", "a100x4"])
def test_restores_state_iterator_and_record_onto_any_mesh(tmp_path, mesh):
    iterator = make_iterator()
    taken = [next(iterator) for _ in range(5)]
    save(tmp_path, make_state(), iterator, record={"config": {"stage": 1}})
    rest = list(iterator)

    checkpoints, fresh = Checkpoints(tmp_path), make_iterator()
    state = checkpoints.restore(3, abstract(mesh), fresh)
    assert_equal(state, make_state())
    assert len(state.trainable["t5_proj"]["kernel"].sharding.device_set) == (4 if mesh == "a100x4" else 1)
    assert list(fresh) == rest
    assert len(taken) + len(rest) == 32
    assert checkpoints.read_metadata(3) == {"config": {"stage": 1}}
    checkpoints.close()


def test_a_step_that_was_not_evaluated_is_saved_without_a_warning(tmp_path, caplog):
    save(tmp_path, make_state())
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == []


def test_keeps_the_latest_two_and_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    for step, score in enumerate([50.0, 60.0, 60.0, 55.0, None], start=1):
        checkpoints.save(make_state(step), make_iterator(), {}, None if score is None else {"R1_avg": score})
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    reopened = Checkpoints(tmp_path)
    assert (reopened.latest_step, reopened.best_step_and_metric) == (5, (2, 60.0))
    assert (reopened.before(5), reopened.before(4), reopened.before(2)) == (4, 2, None)
    reopened.save(make_state(6), make_iterator(), {}, {"R1_avg": 59.0})
    reopened.close()
    assert checkpoint_steps(tmp_path) == [2, 5, 6]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["trainable", "opt_state"])
def test_a_state_that_is_not_finite_is_refused_and_others_stay(tmp_path, part, value):
    def harmed(step):
        state = make_state(step)
        bias = jnp.arange(4.0).at[2].set(value)
        kernel = state.trainable["t5_proj"]["kernel"]
        params = {"t5_proj": {"kernel": kernel, "bias": bias}}
        return replace(state, **{part: params if part == "trainable" else {**state.opt_state, "mu": params}})

    name = "trainable/t5_proj/bias" if part == "trainable" else "opt_state/mu/t5_proj/bias"
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=rf"checkpoints/2 is not saved: {name} are not finite.* from the start"):
        checkpoints.save(harmed(2), make_iterator(), {}, {"R1_avg": 99.0})
    checkpoints.save(make_state(3), make_iterator(), {}, {"R1_avg": 1.0})
    # Saving a step anew removes it first.
    for step in (3, 4):
        with pytest.raises(CheckpointError, match=rf"checkpoints/{step} is not saved: {name} .* from step 3$"):
            checkpoints.save(harmed(step), make_iterator(), {}, {"R1_avg": 99.0})
    checkpoints.wait()
    assert (checkpoint_steps(tmp_path), checkpoints.best_step_and_metric) == ([3], (3, 1.0))
    assert_equal(checkpoints.restore(3, abstract(), make_iterator()), make_state(3))
    checkpoints.close()


@pytest.mark.parametrize("harmed", [4, 5])
def test_what_an_earlier_version_saved_that_is_not_finite_is_refused_with_a_remedy(tmp_path, monkeypatch, harmed):
    """The latest, or the best: a model of NaN weights still gets a score."""
    with monkeypatch.context() as earlier:
        earlier.setattr(manager, "not_finite", lambda leaves: [])
        for step in (4, 5):
            save(tmp_path, make_state(step, value=np.nan if step == harmed else 1.0), metrics={"R1_avg": 9.0 - step})
    checkpoints, other = Checkpoints(tmp_path), 9 - harmed
    remedy = rf"checkpoints/{harmed} cannot be used: .*t5_proj/kernel.*checkpoints/{harmed} to go on from step {other}$"
    with pytest.raises(CheckpointError, match=remedy):
        checkpoints.restore(harmed, abstract("a100x4"), make_iterator())
    with pytest.raises(CheckpointError, match=remedy):
        checkpoints.restore_trainable(harmed, abstract().trainable)
    checkpoints.close()
    shutil.rmtree(tmp_path / f"checkpoints/{harmed}")
    checkpoints = Checkpoints(tmp_path)
    assert (checkpoints.latest_step, checkpoints.best_step_and_metric) == (other, (other, 9.0 - other))
    assert_equal(checkpoints.restore(other, abstract(), make_iterator()), make_state(other))
    checkpoints.close()


def test_a_score_that_is_no_number_is_never_the_best(tmp_path, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr(manager.math, "isfinite", lambda value: True)
        save(tmp_path, make_state(1), metrics={"R1_avg": np.nan})
    save(tmp_path, make_state(2), metrics={"R1_avg": np.nan})
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step_and_metric is None
    for step, score in ((3, 0.0), (4, np.nan), (5, None)):
        checkpoints.save(make_state(step), make_iterator(), {}, None if score is None else {"R1_avg": score})
    assert checkpoints.best_step_and_metric == (3, 0.0)
    checkpoints.close()
    assert checkpoint_steps(tmp_path) == [3, 4, 5]


def test_of_steps_that_got_nothing_right_the_later_is_the_best(tmp_path):
    """Stage 2 of a short run should not start from its first epoch."""
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 5):
        checkpoints.save(make_state(step), make_iterator(), {}, {"R1_avg": 0.0})
    assert checkpoints.best_step_and_metric == (4, 0.0)
    checkpoints.save(make_state(5), make_iterator(), {}, {"R1_avg": 0.5})
    checkpoints.save(make_state(6), make_iterator(), {}, {"R1_avg": 0.5})
    assert checkpoints.best_step_and_metric == (5, 0.5)
    checkpoints.close()


def test_a_step_saved_unevaluated_can_be_saved_again_with_its_metrics(tmp_path):
    save(tmp_path, make_state(4))
    save(tmp_path, make_state(4), metrics={"R1_avg": 1.0})
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.best_step_and_metric == (4, 1.0)
    checkpoints.close()


def test_trainables_alone(tmp_path):
    save(tmp_path, make_state(value=7.0))
    checkpoints = Checkpoints(tmp_path)
    assert_equal(checkpoints.restore_trainable(3, abstract("a100x4").trainable), make_state(value=7.0).trainable)
    checkpoints.close()


def test_a_stage_and_a_conversion_start_from_the_best_checkpoint(tmp_path):
    save(tmp_path, make_state(3, value=1.0), metrics={"R1_avg": 60.0})
    save(tmp_path, make_state(4, value=2.0), metrics={"R1_avg": 50.0})
    template = abstract().trainable
    for checkpoint, step in (("best", 3), ("latest", 4)):
        restored, folder, _ = restore_trainables(tmp_path, template, checkpoint)
        assert (float(restored["t5_proj"]["kernel"][0, 0]), folder.name) == (step - 2, str(step))
    shapes = {"t5_proj/kernel": (8, 4), "t5_proj/bias": (4,)}
    spec = {name: jax.ShapeDtypeStruct(shape, np.float32) for name, shape in shapes.items()}
    converted = run_trained_weights(tmp_path, spec)
    assert float(converted["t5_proj/kernel"].read()[0, 0]) == 1.0


def test_what_another_process_is_writing_stays_where_a_run_is_only_read(tmp_path):
    save(tmp_path, make_state())
    being_written = tmp_path / "checkpoints/9.orbax-checkpoint-tmp"
    being_written.mkdir()
    restore_trainables(tmp_path, abstract().trainable)
    assert being_written.exists()
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        restore_trainables(tmp_path / "none", abstract().trainable)
    assert not (tmp_path / "none").exists()
    save(tmp_path, make_state(4))
    assert not being_written.exists(), "the next trainer removes what a kill left"


def test_another_size_lists_every_shape(tmp_path):
    save(tmp_path, make_state(rows=8))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match="another size") as raised:
        checkpoints.restore(3, abstract(rows=16), make_iterator())
    assert "trainable/t5_proj/kernel: (8, 4) there, (16, 4) here" in str(raised.value)
    assert "opt_state/mu/t5_proj/kernel: (8, 4) there, (16, 4) here" in str(raised.value)
    assert "bias" not in str(raised.value)
    checkpoints.close()


def array_files(folder: Path):
    return [path for path in folder.rglob("d/*") if path.is_file()]


# Orbax reads arrays at once; those still under way when one fails find its event loop closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("harm", ["truncated", "without its arrays", "without its iterator"])
def test_damage_is_named_with_a_remedy(tmp_path, harm):
    save(tmp_path, make_state(2), metrics={"R1_avg": 9.0})
    save(tmp_path, make_state(3))
    folder = tmp_path / "checkpoints/3"
    if harm == "truncated":
        for path in array_files(folder):
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        shutil.rmtree(folder / ("state" if harm == "without its arrays" else "iterator"))
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"checkpoints/3 cannot be read.*remove it to go on from step 2"):
        checkpoints.restore(3, abstract(), make_iterator())
    assert_equal(checkpoints.restore(2, abstract(), make_iterator()), make_state(2))
    checkpoints.close()


def test_no_space(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(CheckpointError, match=r"no space left for .*checkpoints/3.*make room"):
        checkpoints.save(make_state(), make_iterator(), {})
    assert checkpoint_steps(tmp_path) == []
    checkpoints.close()


def test_resume_order(tmp_path):
    mine, other, base = tmp_path / "mine", tmp_path / "other", tmp_path / "base.safetensors"
    assert resolve_init(mine).kind == "fresh"
    save_params(base, {"a": jnp.ones(2)})
    assert resolve_init(mine, base=str(base)).kind == "base"
    with pytest.raises(CheckpointError, match=r"config.weights.start.*other"):
        resolve_init(mine, other_run=str(other), base=str(base))
    save(other, make_state())
    assert resolve_init(mine, other_run=str(other), base=str(base)) == InitSource("other_run", other)
    save(mine, make_state())
    assert resolve_init(mine, other_run=str(other), base=str(base)) == InitSource("resumed", mine)
    with pytest.raises(CheckpointError, match=r"config.weights.base.*nowhere"):
        resolve_init(tmp_path / "new", base="nowhere.safetensors")


def test_params_in_fortran_order_and_with_strides(tmp_path):
    wide = np.arange(12, dtype=np.float32).reshape(3, 4)
    params = {"columns": np.asfortranarray(wide), "every other": wide[:, ::2], "one": np.float32(2.0)}
    save_params(tmp_path / "a.safetensors", params)
    loaded = load_params(tmp_path / "a.safetensors", params)
    for name, array in params.items():
        np.testing.assert_array_equal(loaded[name], array)


def test_params_file(tmp_path):
    params = {"t5": {"a": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3)}, "ln": jnp.array([1.5])}
    path = tmp_path / "weights/base.safetensors"
    save_params(path, params, {"seed": "0"})
    assert [file.name for file in path.parent.iterdir()] == ["base.safetensors"]
    assert len(file_hash(path)) == 64
    exact = load_params(path, jax.eval_shape(lambda: params))
    assert exact["t5"]["a"].dtype == jnp.bfloat16
    assert_equal(exact, params)
    wide = load_params(path, jax.eval_shape(lambda: jax.tree.map(lambda a: a.astype(jnp.float32), params)))
    assert wide["t5"]["a"].dtype == jnp.float32

    with pytest.raises(CheckpointError, match=r"ln: \(1,\) there, \(2,\) here\n  new: absent there, \(3,\) here"):
        load_params(path, {"t5": {"a": jnp.zeros((2, 3))}, "ln": jnp.zeros(2), "new": jnp.zeros(3)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match=r"base.safetensors cannot be read.*damaged"):
        load_params(path, params)
    with pytest.raises(CheckpointError, match=r"gone.safetensors cannot be read: it is missing"):
        load_params(tmp_path / "gone.safetensors", params)
