"""Paths on the command line: an output never replaces an input, and what is no file or no folder is refused at once."""

import json
import os
import subprocess
import sys

import pytest

from calce_jax.config import to_dict
from calce_jax.presets.runs import get_preset
from tests.helpers.commands import run_script

ROW = '{"qid": 1, "query": "A cat.", "vid": "a", "duration": 3, "relevant_windows": [[0, 1]]}\n'
PREDICTION = '{"qid": 1, "query": "A cat.", "vid": "a", "pred_relevant_windows": [[0, 1, 1]]}\n'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with two files, another name of each, a file in a folder, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text(PREDICTION)
    (tmp_path / "a.jsonl").write_text(ROW)
    os.link("p.jsonl", "hard.jsonl")
    (tmp_path / "soft.jsonl").symlink_to("a.jsonl")
    (tmp_path / "b.safetensors").write_bytes(b"weights")
    for name in ("run/checkpoints/1", "prepared/tables", "found/videos", "new"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("run/checkpoints/1/state", "prepared/failures.jsonl", "prepared/tables/val.jsonl"):
        (tmp_path / name).write_text(ROW)
    config = to_dict(get_preset("shapes"))
    config["data"]["directory"] = "prepared"
    (tmp_path / "run/config.json").write_text(json.dumps(config))
    (tmp_path / "found/videos/a.mp4").write_bytes(b"video")
    return tmp_path


FILES = ("--predictions=p.jsonl", "--annotations=a.jsonl")
INFER = ("--workdir=run", "--split=val")
PREPARE = ("--dataset=shapes", "--videos=new")


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", (*FILES, "--out=p.jsonl"), "--out=p.jsonl is the file of --predictions; choose another"),
        ("evaluate", (*FILES, "--out=hard.jsonl"), "--out=hard.jsonl is the file of --predictions; choose another"),
        ("evaluate", (*FILES, "--out=new/../a.jsonl"), "--out=new/../a.jsonl is the file of --annotations; choose"),
        ("evaluate", (*FILES, "--out=x", "--submission=x"), "--submission=x is the file of --out; choose another"),
        ("evaluate", (*FILES, "--out=x", "--submission=p.jsonl"), "--submission=p.jsonl is the file of --predictions"),
        ("merge", (*FILES, "--out=p.jsonl"), "--out=p.jsonl is the file of --predictions; choose another"),
        ("merge", (*FILES, "--out=soft.jsonl"), "--out=soft.jsonl is the file of --annotations; choose another"),
        ("merge", (*FILES, "--out=x", "--durations=x"), "--out=x is the file of --durations; choose another"),
        (
            "convert",
            ("--source=base:b.safetensors", "--target=base:b.safetensors"),
            "--target=base:b.safetensors is the file of --source=base:b.safetensors; choose another",
        ),
        (
            "convert",
            ("--source=orbax:run", "--target=base:run/config.json"),
            "--target=base:run/config.json is a file in the folder of --source=orbax:run; choose another",
        ),
        (
            "convert",
            ("--source=orbax:run", "--target=orbax:run"),
            "--target=orbax:run is the folder of --source=orbax:run; choose another",
        ),
        ("infer", (*INFER, "--out=run/config.json"), "--out=run/config.json is the file of the run's config; choose"),
        ("infer", (*INFER, "--out=run/checkpoints/1/state"), "--out=run/checkpoints/1/state is a file in the folder"),
        ("infer", (*INFER, "--out=prepared/tables/val.jsonl"), "--out=prepared/tables/val.jsonl is a file in the fol"),
        (
            "prepare",
            (*PREPARE, "--annotations=train=prepared/failures.jsonl", "--out=prepared"),
            "--out: prepared/failures.jsonl is the file of --annotations=train=prepared/failures.jsonl; choose another",
        ),
        (
            "prepare",
            (*PREPARE, "--annotations=prepared/tables/val.jsonl", "--out=prepared"),
            "--out: prepared/tables holds the files of --annotations=prepared/tables/val.jsonl; choose another folder",
        ),
        (
            "search",
            ("found/videos/a.mp4", "--query=A cat.", "--out=found"),
            "--out: found/videos holds the files of found/videos/a.mp4; choose another folder",
        ),
    ],
)
def test_an_output_that_is_an_input_is_refused(folder, capsys, command, arguments, message):
    before = contents(folder)
    assert usage_error(capsys, command, *arguments).startswith(f"calce {command}: {message}")
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("evaluate", (*FILES, "--out=new"), "--out=new is a folder, not a file; choose a file"),
        ("evaluate", (*FILES, "--out=other/"), "--out=other/ is a folder, not a file; choose a file"),
        ("merge", (*FILES, "--out=new"), "--out=new is a folder, not a file; choose a file"),
        ("merge", (*FILES, "--out=a.jsonl/x"), "a.jsonl is a file, not a folder; choose another path"),
        ("convert", ("--source=base:b.safetensors", "--target=base:new"), "--target=base:new is a folder, not a file"),
        ("convert", ("--source=base:b.safetensors", "--target=hf:a.jsonl"), "--target=hf:a.jsonl is a file, not a fo"),
        ("infer", (*INFER, "--out=new"), "--out=new is a folder, not a file; choose a file"),
        ("train", ("--config=shapes", "--workdir=a.jsonl"), "--workdir=a.jsonl is a file, not a folder; choose a fo"),
        ("fetch", ("--what=bert", "--out=a.jsonl"), "--out=a.jsonl is a file, not a folder; choose a folder"),
        ("caption", ("--videos=new", "--model=tiny", "--out=a.jsonl"), "--out=a.jsonl is a file, not a folder"),
        ("cache_features", ("--config=shapes", "--out=a.jsonl"), "--out=a.jsonl is a file, not a folder"),
        ("prepare", (*PREPARE, "--annotations=train=a.jsonl", "--out=p.jsonl"), "--out=p.jsonl is a file, not a fol"),
        ("search", ("a.mp4", "--query=A cat.", "--out=a.jsonl"), "--out=a.jsonl is a file, not a folder"),
        ("infer", ("--workdir=p.jsonl", "--split=val", "--out=x"), "--workdir=p.jsonl is a file, not a folder; choose"),
        ("evaluate", (*FILES, "--out="), "--out is empty; give a file"),
        ("merge", (*FILES, "--out="), "--out is empty; give a file"),
        ("infer", (*INFER, "--out="), "--out is empty; give a file"),
        ("infer", ("--workdir=", "--split=val", "--out=x"), "--workdir is empty; give a folder"),
        ("train", ("--config=shapes", "--workdir="), "--workdir is empty; give a folder"),
        ("fetch", ("--what=bert", "--out="), "--out is empty; give a folder"),
        ("caption", ("--videos=new", "--model=tiny", "--out="), "--out is empty; give a folder"),
        ("cache_features", ("--config=shapes", "--out="), "--out is empty; give a folder"),
        ("search", ("a.mp4", "--query=A cat.", "--out="), "--out is empty; give a folder"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused(folder, capsys, command, arguments, message):
    before = contents(folder)
    assert message in usage_error(capsys, command, *arguments)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("infer", ("--workdir=/nope", "--split=val", "--out=x"), "/nope/config.json: no such file; give the workdir"),
        ("caption", ("--videos=/nope", "--model=tiny", "--out=x"), "--videos=/nope: no such file or folder; correct"),
        ("caption", ("--videos=a.jsonl", "--model=/nope", "--out=x"), "/nope: no such folder; give the folder of a W"),
        ("search", ("/nope.mp4", "--query=A cat.", "--out=x"), "/nope.mp4: there is no such file; put it there, or c"),
        (
            "search",
            ("found/videos", "--query=A cat.", "--out=x", "--checkpoint=/nope"),
            "/nope: no trained run in /nope/stage1 and /nope/stage2; give the folder that contains the workdirs",
        ),
        ("web", ("--checkpoint=/nope",), "/nope: no trained run in /nope/stage1 and /nope/stage2; give the folder"),
        ("web", ("--host=nonsense.invalid",), "--host=nonsense.invalid: no such address ("),
        ("train", ("--config=shapes", "--workdir=a.jsonl"), "--workdir=a.jsonl is a file, not a folder"),
        ("evaluate", (*FILES, "--out=new"), "--out=new is a folder, not a file"),
    ],
)
def test_a_wrong_path_is_told_before_jax_is_imported(folder, command, arguments, message):
    script = f"""
import sys
from calce_jax.commands.cli import main
try:
    main({[command, *arguments]!r})
except SystemExit as error:
    print("jax" in sys.modules, error.code, file=sys.stderr)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert message in done.stderr, done.stderr
    assert done.stderr.splitlines()[-1].startswith("False "), done.stderr


def usage_error(capsys, command, *arguments):
    """Run a command that exits with 2, and return the line that it prints."""
    with pytest.raises(SystemExit) as error:
        run_script(command, *arguments)
    assert error.value.code == 2, error.value.code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
