"""The benchmark of the shapes world: its rows, its tables, and a rehearsal of the whole."""

import json
import signal
import subprocess
import sys
import threading
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from benchmarks.shapes import __main__ as main_module
from benchmarks.shapes import run_row as run_row_module
from benchmarks.shapes.__main__ import _run_jobs
from benchmarks.shapes.rows import ROWS, result_path, row_config, tables_folder, with_fields, workdir
from benchmarks.shapes.run_row import score
from benchmarks.shapes.table import format_tables
from calce_jax.config import RunConfig
from calce_jax.moments.annotations import Annotation
from calce_jax.moments.predictions import Prediction
from calce_jax.presets.runs import get_preset

ROOT = Path(__file__).parents[1]


def test_every_row_has_a_valid_config_and_starts_from_one_before_it(tmp_path):
    for number, row in enumerate(ROWS):
        assert row.start in ("", *(before.name for before in ROWS[:number]))
        if not row.preset:  # predicts with the run it starts from
            assert row.start
            assert with_fields(get_preset("shapes,stage=2"), row.changes).generation.decision == "minimum_bayes_risk"
            continue
        config = row_config(row, tmp_path, 1, {"schedule.epochs": 1})
        assert config.seed == 1
        assert config.weights.start == (str(workdir(tmp_path, row.start, 1)) if row.start else "")
        assert config.generation.decision == "most_probable"
    assert len({row.name for row in ROWS}) == len({row.title for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("names", [("reward", "longer"), ("stage2_reward", "stage2_longer")])
def test_training_by_rewards_is_compared_with_as_many_ordinary_steps(tmp_path, names):
    rewards, ordinary = (row_config(row, tmp_path, 0, {}) for row in ROWS if row.name in names)
    rewards, ordinary = sorted((rewards, ordinary), key=lambda config: config.objective, reverse=True)
    assert rewards.objective == "reward"
    assert rewards.schedule == ordinary.schedule
    assert rewards.weights == ordinary.weights
    assert replace(rewards.data, directory="") == replace(ordinary.data, directory="")


def test_stage_2_has_tables_of_its_own_for_each_seed(tmp_path):
    stage1, stage2 = (next(row for row in ROWS if row.name == name) for name in ("stage1", "stage2"))
    assert tables_folder(tmp_path, stage1, 0) == tables_folder(tmp_path, stage1, 1)
    assert len({tables_folder(tmp_path, row, seed) for row in (stage1, stage2) for seed in (0, 1)}) == 3


def test_scores_are_of_all_queries_of_each_kind_and_of_the_absent_ones():
    def annotation(qid, kind, windows):
        return Annotation(qid, "v", "q", [], 20, windows, kind=kind)

    def prediction(qid, windows):
        return Prediction(qid, "q", "v", windows, duration=20)

    rows = [annotation("a", "visual", [[0, 10]]), annotation("b", "caption", [[5, 9]]), annotation("c", "absent", [])]
    found = score([prediction("a", [[0, 10, 0.9]]), prediction("b", [[0, 2, 0.8]]), prediction("c", [])], rows)
    assert found["all"]["R1@0.5"] == 50.0
    assert {kind: scores["R1@0.5"] for kind, scores in found["by_kind"].items()} == {"visual": 100.0, "caption": 0.0}
    assert (found["presence"]["AUROC"], found["presence"]["answered_none"]) == (100.0, 100.0)


def test_tables_have_means_over_seeds_with_their_standard_errors(tmp_path):
    def result(value, **more):
        scores = {"R1@0.5": value, "R1@0.7": value, "mIoU": value, "mAP": value}
        return {"all": scores, "by_kind": {"visual": scores}, "presence": {"AUROC": value}, **more}

    (tmp_path / "base.json").write_text(json.dumps(result(1.0)))
    for seed, value in enumerate((70.0, 72.0, 80.0)):
        path = result_path(tmp_path, f"stage1:{seed}")
        path.parent.mkdir()
        path.write_text(json.dumps(result(value, train_s=10.0)))
    overall, by_kind, absent = format_tables(tmp_path, ROWS, 3).split("\n\n")
    # The standard error of 70, 72 and 80: their standard deviation, 5.29, divided by the root of 3.
    assert "| stage 1 | 3 | 74.0 ± 3.1 | 74.0 ± 3.1 | 74.0 ± 3.1 | 74.0 ± 3.1 |" in overall
    assert "| before training | 1 | 1.0 | 1.0 | 1.0 | 1.0 |" in overall
    assert by_kind.splitlines()[0] == "| | seeds | visual |"
    assert "| stage 1 | 3 | 74.0 ± 3.1 |  |  |  | 10.0 ± 0.0 |  |" in absent
    assert "negatives" not in overall


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--rows=stage1,nothing", "--rows: there is no nothing; the rows are stage1, "),
        ("--jobs=0", "--seeds and --jobs must be 1 or more"),
    ],
)
def test_what_cannot_be_run_is_named(tmp_path, monkeypatch, capsys, option, message):
    monkeypatch.setattr(sys, "argv", ["benchmarks.shapes", f"--out={tmp_path}", option])
    with pytest.raises(SystemExit, match="2"):
        main_module.main()
    assert message in capsys.readouterr().err


def interrupted(monkeypatch, out):
    """Run all jobs, of which Ctrl-C interrupts the first, and return the commands that were started."""
    commands = []

    def run(command, **_):
        commands.append(command)
        if len(commands) == 1:
            time.sleep(0.1)  # all jobs are submitted by then
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.1)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = Namespace(out=out, seeds=2, jobs=1, rehearse=False)
    with pytest.raises(KeyboardInterrupt):
        _run_jobs(arguments, list(ROWS))
    time.sleep(0.1)
    return commands


def test_ctrl_c_starts_no_other_job(tmp_path, monkeypatch, signals_heard):
    assert len(interrupted(monkeypatch, tmp_path)) == 1


def test_jobs_run_where_there_is_no_taskset(tmp_path, monkeypatch, signals_heard):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert interrupted(monkeypatch, tmp_path)[0][0] == sys.executable


def test_a_rehearsal_is_not_taken_for_the_benchmark(tmp_path, monkeypatch, capsys):
    folders = []
    monkeypatch.setattr(main_module, "prepare_world", lambda out, sizes: folders.append(out))
    monkeypatch.setattr(main_module, "_run_jobs", lambda args, rows: folders.append(args.out) or [])
    monkeypatch.setattr(sys, "argv", ["shapes", f"--out={tmp_path}", "--rehearse"])
    assert main_module.main() == 0
    assert folders == [tmp_path / "rehearsal"] * 2


def test_what_a_continued_row_took_is_not_known(tmp_path, monkeypatch):
    for name in ("train_run", "open_run_data", "predict_split", "load_trained_model", "read_annotations_by_split"):
        monkeypatch.setattr(run_row_module, name, MagicMock())
    monkeypatch.setattr(run_row_module, "score", lambda *_: {})
    assert set(run_row_module.run_row(tmp_path, ROWS[0], 0, {})) == {"train_s", "predict_s"}
    workdir(tmp_path, ROWS[0].name, 0).mkdir(parents=True)
    assert run_row_module.run_row(tmp_path, ROWS[0], 0, {}) == {}


@dataclass(frozen=True)
class LoadedModel:
    """Of a trained model what a row changes."""

    config: RunConfig


def test_a_row_that_trains_nothing_predicts_with_the_run_it_starts_from(tmp_path, monkeypatch):
    calls = {name: MagicMock() for name in ("train_run", "predict_split", "predict_split_twice")}
    for name, call in calls.items():
        monkeypatch.setattr(run_row_module, name, call)
    config = get_preset("shapes,stage=2")
    loaded = LoadedModel(config)
    monkeypatch.setattr(
        run_row_module, "load_trained_model", lambda folder: {workdir(tmp_path, "stage2", 1): loaded}[folder]
    )
    monkeypatch.setattr(run_row_module, "read_annotations_by_split", MagicMock())
    monkeypatch.setattr(run_row_module, "score", lambda *_: {})
    for name, looks in (("stage2_risk", "predict_split"), ("stage2_again", "predict_split_twice")):
        (row,) = [row for row in ROWS if row.name == name]
        assert set(run_row_module.run_row(tmp_path, row, 1, {})) == {"predict_s"}
        (model, split, out), _ = calls[looks].call_args
        assert (model.config.generation.decision, split) == ("minimum_bayes_risk", "test")
        assert out == tmp_path / f"seed1/{name}_test.jsonl"
        # What a continued prediction took is not known.
        out.parent.mkdir(exist_ok=True)
        out.with_name(f"{out.name}.part").touch()
        assert run_row_module.run_row(tmp_path, row, 1, {}) == {}
    assert not calls["train_run"].called


def test_rows_that_others_start_from_are_run_too():
    names = [row.name for row in main_module._select_rows(ArgumentParser(), "stage2_again")]
    assert names == ["stage1", "stage2", "stage2_again"]


def test_windows_of_stage_1_are_those_that_a_row_of_stage_1_predicts(tmp_path, monkeypatch):
    """Also after stage 2, whose own predictions are not what it was trained to read."""
    predicted, loaded = MagicMock(), MagicMock()
    monkeypatch.setattr(run_row_module, "predict_split", predicted)
    monkeypatch.setattr(run_row_module, "load_trained_model", loaded)
    monkeypatch.setattr(run_row_module, "read_annotations_by_split", lambda _: {"test": []})
    for name in ("merge_stage1", "rebuild_queries"):
        monkeypatch.setattr(run_row_module, name, MagicMock())
    stage1 = {"stage2": "stage1", "reward_stage2": "reward", "stage2_reward": "stage1", "stage2_longer": "stage1"}
    for row in ROWS:
        if row.stage == 2:
            tables_folder(tmp_path, row, 0).mkdir(parents=True)
            run_row_module.merge_tables(tmp_path, row, 0)
            assert loaded.call_args.args == (tmp_path / "seed0" / stage1.pop(row.name),)
    assert not stage1
    # Rows that run at the same time write different files.
    assert len({call.args[2] for call in predicted.call_args_list}) == predicted.call_count


@pytest.mark.release
def test_the_rehearsal_trains_scores_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, "-m", "benchmarks.shapes", f"--out={tmp_path}", "--rehearse", "--seeds=1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    out = tmp_path / "rehearsal"
    for row in ROWS:
        found = json.loads(result_path(out, f"{row.name}:0").read_text())
        assert found["predict_s"] > 0
        assert ("train_s" in found) == bool(row.preset)
        assert set(found["by_kind"]) == {"visual", "caption", "several", "short", "long", "keywords"}
    result_path(out, "stage2:0").unlink()
    again = subprocess.run([*command, "--rows=stage2"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert [line for line in again.stdout.splitlines() if line.endswith(": done")] == ["stage2:0: done"]
