"""A workdir that the version before renamed fields, metrics and files wrote: read, loaded, resumed.

`tests/data/old_run.tar.xz` is a recorded run of stage 1 on two shapes videos; the README in it says how it was made.
"""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.restore import load_trainable
from calce_jax.checkpoints.workdir import checkpoint_steps
from calce_jax.config import ConfigError, read_config, validate
from calce_jax.config_compat import upgrade_config
from calce_jax.distributed.param_names import named_leaves
from calce_jax.inference.trained_run import load_base_model, load_trained_model
from calce_jax.input_pipeline.dataset import MomentDataset
from calce_jax.moments.predictions import read_predictions
from calce_jax.training import run
from calce_jax.training.loop import EvalResult
from calce_jax.training.metric_log import MetricLog
from calce_jax.training.run import train_run
from calce_jax.training.run_data import open_run_data
from calce_jax.training.workdir_config import init_workdir

ARCHIVE = Path(__file__).parents[1] / "data/old_run.tar.xz"


@pytest.fixture
def old_run(tmp_path):
    """Return a copy of the recorded run."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def test_its_config_is_read_under_todays_names(old_run):
    config = read_config(old_run / "stage1")
    assert (config.stage, config.data.dataset, config.data.frames) == (1, "shapes", 10)
    assert (config.text.bert_tokens, config.generation.window_order) == (24, "longest")
    assert (config.keyframes.dilation, config.keyframes.filter_dilation) == (0, 0)
    assert config.weights.base == "calce_jax/assets/tiny/base.safetensors"


def test_the_metadata_of_its_checkpoint_is_read(old_run):
    checkpoints = Checkpoints(old_run / "stage1")
    metadata = checkpoints.read_metadata(4)
    assert checkpoints.best_step_and_metric == (4, 70.0)
    checkpoints.close()
    assert metadata["start"]["kind"] == "base"
    assert validate(upgrade_config(metadata["config"])) == read_config(old_run / "stage1")


def test_its_tables_and_predictions_are_read(old_run):
    dataset = MomentDataset(old_run / "prepared", "train")
    assert len(dataset) == 8
    example = dataset[5]
    assert (example.qid, example.video, example.video_row) == ("shapes_train_000001_1", "shapes_train_000001", 1)
    assert example.query == "A white cross stays in one place."
    assert (example.duration, example.fps, example.total_frames) == (29.0, 12.5, 363)
    assert [window.tolist() for window in example.windows] == [[9.0, 15.0]]
    assert len(example.keyframes) == len(example.indices) == len(example.times) == 40
    assert [example.qid for example in dataset[-2:]] == ["shapes_train_000001_2", "shapes_train_000001_3"]
    predictions = read_predictions(old_run / "predictions/stage1_train.jsonl")
    assert [prediction.qid for prediction in predictions] == [query.qid for query in dataset.queries()]


@pytest.mark.slow
def test_its_model_is_loaded(old_run):
    model = load_trained_model(old_run / "stage1", mesh="single")
    assert model.checkpoint == old_run / "stage1/checkpoints/4"
    base = named_leaves(load_base_model(model.config).trainable)
    trained = named_leaves(model.trainable)
    changed = {name for name, leaf in trained.items() if not np.array_equal(leaf, base[name])}
    assert {"t5_proj/kernel", "t5/lm_head/b"} <= changed


@pytest.fixture
def resumed(old_run):
    """Return workdir, config and data of the run; one step more than it has made a finished run one that is not."""
    config = read_config(old_run / "stage1")
    data = replace(config.data, directory=str(old_run / "prepared"))
    # The recorded tables lack the split of the evaluation.
    run_data = open_run_data(replace(config, data=replace(data, eval_split="train")))
    run_data = replace(run_data, steps_per_epoch=5, evaluate=lambda predict: EvalResult({"R1_avg": 1.0}))
    return old_run / "stage1", replace(config, data=data, mesh="single"), run_data


@pytest.mark.slow
def test_all_of_its_state_is_restored(resumed, monkeypatch):
    workdir, config, run_data = resumed
    monkeypatch.setattr(run, "train", lambda state, *rest, **options: state)
    fresh = run_data.train_iterator.get_state()
    state = train_run(config, workdir, run_data)
    assert int(state.step) == 4
    saved = named_leaves(load_trainable(workdir, state.trainable))
    for name, leaf in named_leaves(state.trainable).items():
        np.testing.assert_array_equal(leaf, saved[name], err_msg=name)
    moments = {name: leaf for name, leaf in named_leaves(state.opt_state).items() if "/mu/" in name or "/nu/" in name}
    assert moments
    assert all(np.any(leaf) for name, leaf in moments.items() if name.endswith("/b"))
    iterator = json.loads((workdir / "checkpoints/4/iterator/process_0-of-1.json").read_text())
    assert run_data.train_iterator.get_state() == iterator != fresh


@pytest.mark.release
def test_it_is_resumed_with_its_config_alone(resumed, monkeypatch):
    workdir, config, run_data = resumed
    with pytest.raises(ConfigError, match=r"another config.*\n  keyframes.dilation: 0 there, 2 here$"):
        init_workdir(workdir, replace(config, keyframes=replace(config.keyframes, dilation=2)))

    steps, add = [], MetricLog.add
    monkeypatch.setattr(MetricLog, "add", lambda log, step, *rest: (steps.append(step), add(log, step, *rest)))
    state = train_run(config, workdir, run_data)
    assert (int(state.step), steps) == (5, [5])
    assert checkpoint_steps(workdir) == [4, 5]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.trainable))
    checkpoints = Checkpoints(workdir)
    assert checkpoints.read_metadata(5)["start"]["kind"] == "resumed"
    checkpoints.close()
    assert read_config(workdir) == config
