"""docs/own_data.md: followed word by word at the tiny size, it ends in a trained model."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from calce_jax.checkpoints.workdir import checkpoint_steps
from calce_jax.moments.annotations import read_annotations
from data.shapes.write import write_shapes
from tests.helpers.commands import run_script
from tests.helpers.documented_commands import code_lines

PAGE = (Path(__file__).parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")


def section(title: str, end: str) -> list[list[str]]:
    """Return the words of the commands of the page from a heading to another one, without `calce`."""
    text = PAGE.partition(f"\n{title}\n")[2].partition(f"\n{end}\n")[0]
    return [shlex.split(line)[1:] for _, line in code_lines(text) if line.startswith("calce ")]


CHECK = section("## Check them", "## Train")
TINY = section("### First at the tiny size", "### Then at the full size")
FULL = section("### Then at the full size", "## Watch")


def test_both_sizes_have_the_same_steps():
    steps = ["prepare", "train", "infer", "infer", "merge", "merge", "prepare", "train", "infer", "evaluate"]
    assert [words[0] for words in CHECK] == ["prepare"]
    assert [words[0] for words in TINY] == [*steps, "search"]
    assert [words[0] for words in FULL] == ["fetch", "fetch", "convert", *steps, "train"]  # at last by rewards
    for tiny, full in zip(TINY[: len(steps)], FULL[3:], strict=False):
        only_tiny = r"--(image_size|config\.(mesh|data\.workers|data\.group|text\.|schedule\.|loop\.)).*"
        kept = [re.sub("mine_tiny|,size=tiny", lambda m: "mine" * (m[0] == "mine_tiny"), word) for word in tiny]
        assert [word for word in kept if not re.fullmatch(only_tiny, word)] == full


@pytest.mark.release
def test_the_tiny_commands_end_in_a_trained_model(tmp_path, monkeypatch, capfd):
    write_shapes(tmp_path / "shapes", {"train": 2, "val": 1}, seed=5)
    for split in ("train", "val"):
        lines = (tmp_path / f"shapes/{split}.jsonl").read_text().splitlines(keepends=True)
        (tmp_path / f"{split}.jsonl").write_text("".join(lines[:4]))
    for folder in ("videos", "srts"):
        (tmp_path / "shapes" / folder).rename(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["own_data"])
    errors = {}
    for number, words in enumerate([*CHECK, *TINY]):
        if words[:2] == ["train", "--config=qvhighlights,stage=2,size=tiny"]:
            assert all(row.stage1_windows for row in read_annotations(tmp_path / "runs/mine_tiny/merged/train.jsonl"))
        run_script(*words)
        printed = capfd.readouterr()
        errors[f"{number} {words[0]}"] = printed.err
        assert words[0] != "train" or not printed.out
    train = [text for title, text in errors.items() if title.endswith("train")]
    for stage, text in enumerate(train, 1):
        assert f"stage {stage} of qvhighlights at the size tiny, on 1 device (cpu)" in text
        assert "\nepoch 3/3  loss " in text
        assert re.search(r"the best checkpoint is \S+, R1_avg \d+\.\d\d on val\n", text)
        workdir = f"runs/mine_tiny/stage{stage}"
        assert text.splitlines()[-2:] == [
            f"to watch it: tensorboard --logdir={workdir}",
            f"to predict with it: calce infer --workdir={workdir} --split=val --out={workdir}/val.jsonl",
        ]
        assert checkpoint_steps(tmp_path / workdir)[-1] == 3
    scores = json.loads((tmp_path / "runs/mine_tiny/scores.json").read_text())
    assert 0 <= scores["reference"]["R1_avg"] <= 100
    found = json.loads((tmp_path / "runs/found_tiny/moments.json").read_text())
    assert len(found) == len(list((tmp_path / "videos").iterdir()))
    assert all(query["query"] == "a dog catches a ball" for entry in found for query in entry["queries"])
