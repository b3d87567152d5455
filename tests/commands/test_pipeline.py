"""All commands from videos to moments, and their errors with a trained run."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import calce_jax
from calce_jax.config import packaged_path
from calce_jax.distributed.param_names import named_leaves
from calce_jax.inference.trained_run import load_trained_model
from calce_jax.moments.annotations import read_annotations
from calce_jax.search.results import to_json
from calce_jax.storage.disk_cache import DiskCache
from tests.helpers.commands import run_script, unchanged_process, xla_test_flags
from tests.helpers.pipeline import FRAMES, SHORT

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_commands_lead_to_scores_and_moments(pipeline_run):
    out, printed = pipeline_run
    assert "val: 4 of 4 queries are in" in printed["prepare"]
    videos = len({row.video for split in ("train", "val") for row in read_annotations(out / f"{split}.jsonl")})
    assert f"{videos} videos are ready, {videos} of them decoded now" in printed["prepare"]
    assert f"{videos} videos are ready, 0 of them decoded now" in printed["prepare again"]
    for split in ("train", "val"):
        assert "4 queries answered" in printed[f"stage1_{split}"]
        merged = read_annotations(out / f"merged/{split}.jsonl")
        assert all(row.stage1_windows for row in merged)
        assert [replace(row, stage1_windows=None) for row in merged] == read_annotations(out / f"{split}.jsonl")
    for stage in (1, 2):
        assert list((out / f"runs/stage{stage}").glob("events.out.tfevents*"))
        config = json.loads((out / f"runs/stage{stage}/config.json").read_text())
        assert (config["stage"], config["data"]["frames"]) == (stage, FRAMES[stage])
    scores = json.loads((out / "scores.json").read_text())
    assert {"R1@0.5", "R1@0.7", "R1_avg", "mIoU", "mAP"} <= scores["reference"].keys() & scores["official"].keys()
    assert "mIoU" in printed["evaluate"]
    (entry,) = json.loads((out / "search/moments.json").read_text())
    assert [query["query"] for query in entry["queries"]] == ["A red circle."]
    assert "searched 1 of 1 videos in" in printed["search"]
    assert "fitted to 4 queries about" in printed["fit_ranker"]
    assert (out / "runs/ranker.safetensors").is_file()
    assert "<!doctype html>" in (out / "search/index.html").read_text()


@pytest.mark.release
@pytest.mark.slow
def test_a_stage_is_trained_on_by_rewards_and_its_run_is_read(pipeline_run, tmp_path):
    out = pipeline_run.folder
    run_script(
        "train",
        "--config=shapes,stage=1,objective=reward",
        f"--workdir={tmp_path}/run",
        f"--config.data.directory={out}/prepared",
        f"--config.weights.start={out}/runs/stage1",
        f"--config.data.frames={FRAMES[1]}",
        *SHORT,
        "--config.reward.rollouts=3",
        "--config.schedule.epochs=2",
    )
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    rewards = {name: events.Scalars(f"train/{name}")[0].value for name in ("reward", "equal", "malformed")}
    assert all(0 <= value <= 1 for value in rewards.values())
    assert events.Scalars("train/answer_length")[0].value >= 1
    learnt, start = (named_leaves(load_trained_model(run).trainable) for run in (tmp_path / "run", out / "runs/stage1"))
    assert any((leaf != start[name]).any() for name, leaf in learnt.items())


@pytest.mark.slow
def test_runs_in_bfloat16_are_trained_in_float32_and_converted(pipeline_run, tmp_path):
    run = load_trained_model(pipeline_run.folder / "runs/stage2")
    assert {leaf.dtype for leaf in jax.tree.leaves(run.trainable)} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(run.frozen)} == {jnp.dtype(jnp.bfloat16)}
    learnt = {name: np.asarray(leaf) for name, leaf in named_leaves(run.trainable).items()}
    assert all(np.isfinite(leaf).all() for leaf in learnt.values())
    assert all(leaf.any() for name, leaf in learnt.items() if name.endswith("/b"))  # adapters begin with 0

    source = f"orbax:{pipeline_run.folder}/runs/stage2"
    for target in ("calce:trained.pth", "hf:hf", "peft:peft"):
        form, _, name = target.partition(":")
        run_script("convert", f"--source={source}", f"--target={form}:{tmp_path}/{name}", "--dtype=bfloat16")
    base = f"base:{packaged_path(run.config.weights.base)}"
    preset = ("--run=shapes,stage=2", "--size=tiny")
    run_script("convert", f"--source={base},calce:{tmp_path}/trained.pth", f"--target=orbax:{tmp_path}/back", *preset)
    back = named_leaves(load_trained_model(tmp_path / "back").trainable)
    assert {name: (leaf == learnt[name]).all() for name, leaf in back.items()} == dict.fromkeys(learnt, True)
    file = tmp_path / "merged.safetensors"
    run_script("convert", f"--source={source},hf:{tmp_path}/hf", f"--target=base:{file}")
    merged = load_file(file)["t5/lm_head/kernel"].astype(np.float32)
    base_kernel = np.asarray(named_leaves(run.frozen)["t5/lm_head/base/kernel"], np.float32)
    low, up = (learnt[f"t5/lm_head/{factor}"] for factor in "ab")
    # Rounded to 8 bits once; the scale of the adapter is 1.
    np.testing.assert_allclose(merged, base_kernel + low @ up, rtol=2**-8, atol=1e-6)
    assert not np.array_equal(merged, base_kernel)
    adapter = load_file(tmp_path / "peft/adapter_model.safetensors")
    assert sum(array.size for array in adapter.values()) == sum(
        leaf.size for name, leaf in learnt.items() if name.startswith("t5/") and name.endswith(("/a", "/b"))
    )


@pytest.mark.release
def test_a_trained_run_is_calibrated(pipeline_run, tmp_path, capsys):
    out, _ = pipeline_run
    written = tmp_path / "calibration.json"
    run_script("calibrate", f"--checkpoint={out}/runs", "--queries=4", f"--out={written}")
    assert "of the queries about their own video" in capsys.readouterr().out
    assert json.loads(written.read_text())["num_queries"] == 8


@pytest.mark.release
def test_load_searches_like_the_command(pipeline_run):
    out, _ = pipeline_run
    (entry,) = json.loads((out / "search/moments.json").read_text())
    with unchanged_process():
        model = calce_jax.load(out / "runs", cache=DiskCache(out / "cache"))
        moments = model.search(entry["video"], "A red circle.", min_score=0)
        again = model.search(model.encode(entry["video"]), "A red circle.", min_score=0)
    assert to_json(*moments.results) == entry
    assert list(moments) == list(again)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            "train",
            ["--config=shapes,stage=1", "--config.seed=7"],
            "belongs to another config; choose another --workdir, or the values it was made with:",
        ),
        (
            "infer",
            ["--split=test", "--out={out}/x.jsonl"],
            "has the splits train and val, but not test; choose",
        ),
        ("infer", ["--split=val", "--out={out}/x.jsonl", "--data=/nowhere"], "there are no tables in /nowhere:"),
    ],
)
def test_errors_with_a_trained_run(pipeline_run, command, arguments, message):
    out, _ = pipeline_run
    arguments = [argument.format(out=out) for argument in arguments]
    if command == "train":
        arguments += [*SHORT, f"--config.data.directory={out}/prepared", f"--config.data.frames={FRAMES[1]}"]
    with pytest.raises(SystemExit) as error:
        run_script(command, *arguments, f"--workdir={out}/runs/stage1")
    assert str(error.value).startswith("Error: ")
    assert message in str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize("folder", [pytest.param("checkout", marks=pytest.mark.release), "another"])
def test_a_script_prints_an_error_as_its_last_line_without_a_traceback(folder, tmp_path):
    """`python launch/train.py` from the checkout, and by its absolute path from another folder."""
    script = "launch/train.py" if folder == "checkout" else str(ROOT / "launch/train.py")
    done = subprocess.run(
        [sys.executable, script, "--config=shapes", "--config.data.directory=/nowhere", f"--workdir={tmp_path}/run"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT if folder == "checkout" else tmp_path,
        env=os.environ | {"XLA_FLAGS": xla_test_flags(1), "PYTHONPATH": str(ROOT)},
        timeout=900,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("Error: there are no tables in /nowhere")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
