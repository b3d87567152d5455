import dataclasses
import inspect
import json
import os
import re
import shutil
import signal

import grain
import jax
import numpy as np
import pytest

from calce_jax.batch import NUM_FIXED_SPANS, Batch
from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.params_file import CheckpointError, save_params
from calce_jax.checkpoints.restore import load_trainable, load_weights
from calce_jax.checkpoints.workdir import checkpoint_steps, resolve_init
from calce_jax.config import ConfigError, read_config, validate
from calce_jax.distributed import profiling
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.prediction import step_config
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.storage.locks import FileLock, LockError
from calce_jax.training import run
from calce_jax.training.loop import EvalResult
from calce_jax.training.metric_log import MetricLog
from calce_jax.training.run import checkpoint_metadata, train_run
from calce_jax.training.run_data import RunData
from calce_jax.training.workdir_config import init_workdir
from configs.calce import get_config
from tests.helpers.tiny_model import make_model
from tests.helpers.traces import traced_steps

B, T, C, WORDS, ANSWER, VOCAB = 4, 6, 2, 5, 8, 64
SIZES = dataclasses.replace(CalceConfig.tiny(VOCAB, VOCAB), dtype="bfloat16")


def tiny_config(**changes):
    config = get_config("shapes,stage=1")
    config.update(
        {
            "mesh": "single",
            # As at full size; the rest of the suite trains in float32.
            "model": {"frozen_dtype": "bfloat16", "compute_dtype": "bfloat16"},
            "data": {"frames": T, "captions": C, "batch": B},
            "keyframes": {"clusters": 3},
            "schedule": {"epochs": 2, "warmup_steps": 2},
            "text": {"buckets": (96,), "answer_tokens": ANSWER},
            "generation": {"beams": 2},
            "weights": {"base": ""},
            "loop": {"log_every": 1},
        }
    )
    config.update(changes)
    return validate(config)


def make_batch(rows):
    rows = np.asarray(rows, np.int32)
    rng = np.random.default_rng(rows)
    spans = T + C + NUM_FIXED_SPANS
    starts = np.arange(spans, dtype=np.int32)
    batch = Batch.zeros(
        B, frames=T, image_size=56, captions=C, bert_tokens=WORDS, text_tokens=spans, windows=1, answer_tokens=ANSWER
    )
    return dataclasses.replace(
        batch,
        frames=rng.integers(0, 256, batch.frames.shape, np.uint8),
        frame_mask=np.ones((B, T), bool),
        times=np.tile(np.arange(T, dtype=np.float32), (B, 1)),
        duration=np.full(B, float(T), np.float32),
        tokens=rng.integers(3, VOCAB, (B, spans)).astype(np.int32),
        spans=np.tile(np.stack([starts, np.ones_like(starts)], axis=1), (B, 1, 1)),
        query_bert_tokens=rng.integers(1, VOCAB, (B, WORDS)).astype(np.int32),
        caption_bert_tokens=rng.integers(1, VOCAB, (B, C, WORDS)).astype(np.int32),
        labels=rng.integers(3, VOCAB, (B, ANSWER)).astype(np.int32),
        row_mask=np.ones(B, bool),
        example_index=rows,
    )


def make_run_data(sigterm_after_evaluation=False):
    """Return random queries about noise, and an evaluation that checks the shapes of predictions."""
    data = grain.MapDataset.range(8).shuffle(seed=3).repeat(None).to_iter_dataset().batch(B, batch_fn=make_batch)

    def evaluate(predict):
        (prediction,) = predict([make_batch(range(B))])
        assert prediction.answers.tokens.shape == (B, 2, ANSWER)
        if sigterm_after_evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return EvalResult({"R1_avg": float(prediction.answers.score[:, 0].mean())})

    tables = {"train": {"queries": 8, "videos": 8, "sha256": "ab"}}
    return RunData(iter(data), 8 // B, lambda rows: [f"q{row}" for row in rows], evaluate, SIZES, ANSWER, tables=tables)


def test_a_workdir_belongs_to_one_config(tmp_path):
    config = tiny_config()
    init_workdir(tmp_path, config)
    (tmp_path / "checkpoints/1").mkdir(parents=True)
    init_workdir(tmp_path, dataclasses.replace(config, loop=dataclasses.replace(config.loop, log_every=9)))
    with pytest.raises(
        ConfigError, match=r"another config(.|\n)*  lora.rank: 32 there, 4 here\n  seed: 42 there, 1 here"
    ):
        init_workdir(tmp_path, dataclasses.replace(config, seed=1, lora=dataclasses.replace(config.lora, rank=4)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json: not JSON"):
        init_workdir(tmp_path, config)


@pytest.mark.parametrize("field", ["base", "start"])
def test_a_start_that_failed_does_not_block_its_workdir(tmp_path, field):
    config = tiny_config()
    wrong = dataclasses.replace(config, weights=dataclasses.replace(config.weights, **{field: str(tmp_path / "no")}))
    with pytest.raises(CheckpointError, match=rf"config\.weights\.{field}"):
        train_run(wrong, tmp_path / "run", make_run_data())
    init_workdir(tmp_path / "run", config)
    assert read_config(tmp_path / "run") == config


def test_a_second_run_in_a_locked_workdir_is_refused(tmp_path):
    with FileLock(tmp_path / "train.lock"), pytest.raises(LockError, match=r"train\.lock: process .* writes here"):
        train_run(tiny_config(), tmp_path, make_run_data())
    assert list(tmp_path.iterdir()) == []


def test_the_record_names_the_base_weights_and_the_code(tmp_path):
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"weights")
    config = tiny_config(weights={"base": str(base)})
    record = json.loads(json.dumps(checkpoint_metadata(config, resolve_init(tmp_path, base=str(base)), {})))
    assert record["base"]["file"] == str(base)
    assert len(record["base"]["sha256"]) == 64
    assert record["lora"] == {"rank": 32, "alpha": 32.0}
    assert record["start"] == {"kind": "base", "path": str(base)}
    assert record["trained_with_items"] is True
    bare = {"train": {"queries": 8, "videos": 8, "without_items": 8, "sha256": "ab"}}
    assert checkpoint_metadata(config, resolve_init(tmp_path), bare)["trained_with_items"] is False
    assert validate(record["config"]) == config


def test_both_programs_follow_the_config():
    program_config = step_config(
        tiny_config(stage=2, behaviour="reference", keyframes={"clusters": 3, "dilation": 2, "filter_dilation": 1}), 7
    )
    selection = program_config.selection
    assert (selection.stage, selection.clusters, selection.dilation, selection.filter_dilation) == (2, 3, 2, 1)
    assert (program_config.behaviour, program_config.buckets) == ("reference", (96,))
    assert (program_config.num_beams, program_config.max_answer_length) == (2, 7)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Return a file of base weights, and the weights."""
    _, *weights = make_model(dataclasses.replace(SIZES, lora=None))
    file = tmp_path_factory.mktemp("base") / "base.safetensors"
    leaves = {name: leaf for part in weights for name, leaf in named_leaves(part).items()}
    save_params(file, leaves)
    return file, leaves


@pytest.mark.slow
def test_base_weights_fill_all_but_the_adapters(base):
    file, base = base
    config = tiny_config(weights={"base": str(file)}, model={"frozen_dtype": "float32"})
    trainable, frozen = load_weights(SIZES, config, make_mesh("a100x4"))
    built, base_leaves = named_leaves(trainable) | named_leaves(frozen), named_leaves(base)
    adapters = {name for name in built if name.split("/")[-1] in ("a", "b")}
    assert {name.replace("/base/", "/") for name in built.keys() - adapters} == base_leaves.keys()
    for name in built.keys() - adapters:
        np.testing.assert_array_equal(built[name], base_leaves[name.replace("/base/", "/")])
    assert len(built["vit/blocks/mlp/wi/kernel"].sharding.device_set) == 4
    # Adapters are drawn by the config's seed.
    other, _ = load_weights(SIZES, dataclasses.replace(config, seed=config.seed + 1), make_mesh("single"))
    assert not np.array_equal(built["t5/lm_head/a"], named_leaves(other)["t5/lm_head/a"])


@pytest.mark.slow
def test_the_dropout_of_a_run_has_the_key_of_its_seed(tmp_path, monkeypatch, base):
    keys = []

    def step(state, frozen, batch, key, reference):
        keys.append(jax.random.key_data(key).tolist())
        return state

    def train(state, feed, schedule, functions, outputs, **_):
        return functions.train_step(state, None)

    monkeypatch.setattr(run, "compile_train_step", lambda *_: step)
    monkeypatch.setattr(run, "train", train)
    for seed in (3, 4):
        config = dataclasses.replace(tiny_config(weights={"base": str(base[0])}), seed=seed)
        train_run(config, tmp_path / str(seed), make_run_data())
    assert keys == [jax.random.key_data(jax.random.key(seed)).tolist() for seed in (3, 4)]


@pytest.mark.release
@pytest.mark.slow
def test_a_run_stops_goes_on_and_starts_another_stage(tmp_path, monkeypatch, base, capsys):
    monkeypatch.setattr(profiling, "SKIPPED_STEPS", 1)
    config = tiny_config(data={"group": 2}, weights={"base": str(base[0])})
    run_data = make_run_data(sigterm_after_evaluation=True)
    with pytest.raises(SystemExit):
        train_run(config, tmp_path / "stopped", run_data, stop_on_signals=True, profile_steps=1)
    assert traced_steps(tmp_path / "stopped/profile", "train") == [2]
    assert checkpoint_steps(tmp_path / "stopped") == [2]
    started = capsys.readouterr()
    assert started.out == ""
    assert [line for line in started.err.splitlines() if "parameters" not in line][:3] == [
        "stage 1 of shapes at the size tiny, on 1 device (cpu)",
        "2 epochs of 2 steps, 4 in all, with 4 queries each",
        "compiling the training step; this takes a while once",
    ]
    assert re.search(r"^\d[\d,]+ parameters are trained, \d[\d,]+ are frozen$", started.err, re.MULTILINE)
    assert "is finished" not in started.err
    assert "checkpoint is" not in started.err
    halved = {"train": {"queries": 4, "videos": 4, "sha256": "cd"}}
    with pytest.raises(ConfigError, match=r"not those this run was trained on: train: 8 queries then, 4 now, 8 videos"):
        train_run(config, tmp_path / "stopped", dataclasses.replace(make_run_data(), tables=halved))
    steps, add = [], MetricLog.add
    monkeypatch.setattr(MetricLog, "add", lambda log, step, *rest: (steps.append(step), add(log, step, *rest)))
    state = train_run(config, tmp_path / "stopped", make_run_data())
    assert (int(state.step), steps) == (4, [3, 4])

    resumed = capsys.readouterr().err
    assert (
        f"resuming from {tmp_path / 'stopped/checkpoints/2'}\n2 epochs of 2 steps, 4 in all, with 4 queries each; 2 are"
        in (resumed)
    )
    again = train_run(config, tmp_path / "stopped", make_run_data())
    assert (int(again.step), steps) == (4, [3, 4])

    checkpoints = Checkpoints(tmp_path / "stopped")
    assert checkpoints.best_step_and_metric is not None
    best, score = checkpoints.best_step_and_metric
    result = f"the best checkpoint is {tmp_path / 'stopped/checkpoints' / str(best)}, R1_avg {score:.2f} on val"
    finished = capsys.readouterr().err
    assert resumed.splitlines()[-1] == finished.splitlines()[-1]
    assert finished.splitlines()[-1].startswith(result)
    assert f"{tmp_path / 'stopped'} is finished at step 4; to go on, raise --config.schedule.epochs=2;" in finished
    assert "compiling" not in finished
    longer = tiny_config(data={"group": 2}, weights={"base": str(base[0])}, schedule={"epochs": 3})
    with pytest.raises(ConfigError, match="another config"):
        init_workdir(tmp_path / "stopped", longer, steps_per_epoch=3)  # so it would not be finished
    shutil.copytree(tmp_path / "stopped", tmp_path / "longer")
    assert int(train_run(longer, tmp_path / "longer", make_run_data()).step) == 6
    assert steps == [3, 4, 5, 6]
    assert "was finished after 2 epochs and goes on to 3" in capsys.readouterr().err
    assert read_config(tmp_path / "longer").schedule.epochs == 3
    with pytest.raises(ConfigError, match=r"schedule.epochs: 3 there, 2 here"):
        train_run(config, tmp_path / "longer", make_run_data())
    assert checkpoints.read_metadata(4)["start"]["kind"] == "resumed"
    checkpoints.close()
    loaded = named_leaves(load_trainable(tmp_path / "stopped", state.trainable))
    assert not list(tmp_path.rglob("*.lock"))
    assert loaded.keys() == named_leaves(state.trainable).keys()
    assert np.abs(loaded["t5/lm_head/b"]).max() > 0

    # The next stage starts from the best of these weights; its own training is left out.
    saved, dropout_keys = [], []

    def no_training(state, feed, schedule, functions, outputs, **options):
        saved.append(outputs.metadata["start"])
        dropout_keys.append(inspect.getclosurevars(inspect.unwrap(functions.train_step)).nonlocals["key"])
        return state

    monkeypatch.setattr(run, "train", no_training)
    config = tiny_config(seed=7, weights={"base": str(base[0]), "start": str(tmp_path / "stopped")})
    started = train_run(config, tmp_path / "next", make_run_data())
    for name, leaf in named_leaves(started.trainable).items():
        np.testing.assert_array_equal(leaf, loaded[name])
    assert saved == [{"kind": "other_run", "path": str(tmp_path / "stopped")}]
    assert dropout_keys == [jax.random.key(7)]
