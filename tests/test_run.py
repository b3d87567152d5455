import dataclasses
import json
import os
import signal

import grain
import numpy as np
import pytest
from flax import nnx

from calce_jax.batch import SPANS_BESIDE_FRAMES_AND_CAPTIONS, Batch
from calce_jax.checkpoints.manager import Checkpoints, save_params, starting_point, steps_in
from calce_jax.checkpoints.restore import build_model, trainables_of
from calce_jax.config import ConfigError, validate
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.predict_step import step_config
from calce_jax.models.calce import Calce, CalceConfig
from calce_jax.storage.locks import FileLock, LockError
from calce_jax.training.loop import Evaluation
from calce_jax.training.run import claim_workdir, make_record, train_run
from calce_jax.training.run_data import Material
from configs.calce import get_config

B, T, C, WORDS, ANSWER, VOCAB = 4, 6, 2, 5, 8, 64
SIZES = CalceConfig.tiny(VOCAB, VOCAB)


def tiny_config(**changes):
    config = get_config("shapes,stage=1")
    config.update(
        {
            "mesh": "a100x4",
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
    spans = T + C + SPANS_BESIDE_FRAMES_AND_CAPTIONS
    starts = np.arange(spans, dtype=np.int32)
    return Batch(
        frames=rng.integers(0, 256, (B, T, 56, 56, 3), np.uint8),
        present=np.ones((B, T), bool),
        times=np.tile(np.arange(T, dtype=np.float32), (B, 1)),
        duration=np.full(B, float(T), np.float32),
        tokens=rng.integers(3, VOCAB, (B, spans)).astype(np.int32),
        spans=np.tile(np.stack([starts, np.ones_like(starts)], axis=1), (B, 1, 1)),
        query_words=rng.integers(1, VOCAB, (B, WORDS)).astype(np.int32),
        caption_words=rng.integers(1, VOCAB, (B, C, WORDS)).astype(np.int32),
        talk=np.zeros(B, bool),
        spoken=np.zeros((B, T), bool),
        windows=np.zeros((B, 1, 2), np.float32),
        window_valid=np.zeros((B, 1), bool),
        labels=rng.integers(3, VOCAB, (B, ANSWER)).astype(np.int32),
        valid=np.ones(B, bool),
        row=rows,
        notes=np.zeros(B, np.int32),
    )


def material(stop_after_first_evaluation=False):
    """Random queries about noise, and an evaluation that sees whether an answer came for every one."""
    data = grain.MapDataset.range(8).shuffle(seed=3).repeat(None).to_iter_dataset().batch(B, batch_fn=make_batch)

    def evaluate(predict):
        (prediction,) = predict([make_batch(range(B))])
        assert prediction.answers.tokens.shape == (B, 2, ANSWER)
        if stop_after_first_evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return Evaluation({"R1_avg": float(prediction.answers.score[:, 0].mean())})

    return Material(iter(data), 8 // B, lambda rows: [f"q{row}" for row in rows], evaluate, SIZES, ANSWER)


def test_a_workdir_belongs_to_one_config(tmp_path):
    config = tiny_config()
    claim_workdir(tmp_path, config)
    claim_workdir(tmp_path, dataclasses.replace(config, loop=dataclasses.replace(config.loop, log_every=9)))
    with pytest.raises(
        ConfigError, match=r"another config(.|\n)*  lora.rank: 8 there, 4 here\n  seed: 42 there, 1 here"
    ):
        claim_workdir(tmp_path, dataclasses.replace(config, seed=1, lora=dataclasses.replace(config.lora, rank=4)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json is no JSON"):
        claim_workdir(tmp_path, config)


def test_two_that_train_in_one_workdir_do_not_meet(tmp_path):
    with FileLock(tmp_path / "train.lock"), pytest.raises(LockError, match=r"train\.lock: process .* writes here"):
        train_run(tiny_config(), tmp_path, material())
    assert list(tmp_path.iterdir()) == []


def test_the_record_names_the_base_weights_and_the_code(tmp_path):
    base = tmp_path / "base.safetensors"
    base.write_bytes(b"weights")
    config = tiny_config(weights={"base": str(base)})
    record = json.loads(json.dumps(make_record(config, starting_point(tmp_path, base=str(base)))))
    assert record["base"]["file"] == str(base)
    assert len(record["base"]["sha256"]) == 64
    assert record["lora"] == {"rank": 8, "alpha": 8.0}
    assert record["start"] == {"kind": "base", "path": str(base)}
    assert validate(record["config"]) == config


def test_both_programs_follow_the_config():
    made = step_config(
        tiny_config(stage=2, behaviour="reference", keyframes={"clusters": 3, "dilation": 2, "filter_dilation": 1}), 7
    )
    selection = made.selection
    assert (selection.stage, selection.clusters, selection.dilation, selection.filter_dilation) == (2, 3, 2, 1)
    assert (made.behaviour, made.buckets, made.beams, made.answer_length) == ("reference", (96,), 2, 7)


@pytest.mark.slow
def test_base_weights_fill_all_but_the_adapters(tmp_path):
    config = tiny_config(weights={"base": str(tmp_path / "base.safetensors")})
    base = nnx.state(Calce(dataclasses.replace(SIZES, lora=None), rngs=nnx.Rngs(5)))
    save_params(tmp_path / "base.safetensors", base)
    _, trainable, frozen = build_model(SIZES, config, make_mesh("a100x4"))
    built, given = named_leaves(trainable) | named_leaves(frozen), named_leaves(base)
    adapters = {name for name in built if name.split("/")[-1] in ("a", "b")}
    assert {name.replace("/base/", "/") for name in built.keys() - adapters} == given.keys()
    for name in built.keys() - adapters:
        np.testing.assert_array_equal(built[name], given[name.replace("/base/", "/")])
    assert len(built["vit/blocks/mlp/wi/kernel"].sharding.device_set) == 4


@pytest.mark.slow
def test_a_run_stops_goes_on_and_starts_another_stage(tmp_path):
    config = tiny_config(data={"group": 2})
    with pytest.raises(SystemExit):
        train_run(config, tmp_path / "stopped", material(stop_after_first_evaluation=True))
    assert steps_in(tmp_path / "stopped") == [2]
    state = train_run(config, tmp_path / "stopped", material())
    assert int(state.step) == 4

    kept = Checkpoints(tmp_path / "stopped")
    assert kept.best is not None
    assert kept.record(4)["start"]["kind"] == "resumed"
    kept.close()
    taken = named_leaves(trainables_of(tmp_path / "stopped", state.trainable))
    assert not list(tmp_path.rglob("*.lock"))
    assert taken.keys() == named_leaves(state.trainable).keys()
    assert np.abs(taken["t5/lm_head/b"]).max() > 0
