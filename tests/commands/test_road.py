"""The launch scripts as one types them: the whole road once, and what they say to mistakes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from calce_jax.moments.annotations import read_annotations
from data.shapes.write import write_shapes
from tests.helpers.commands import run_script, xla_test_flags

# ml_collections reads a config's file in a way that Python 3.11 calls old.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

ROOT = Path(__file__).parents[2]
FRAMES = {1: 8, 2: 16}
# Enough to pass every part, too little to learn.
SHORT = (
    "--config.data.batch=2",
    "--config.data.eval_batch=2",
    "--config.data.captions=4",
    "--config.keyframes.clusters=3",
    "--config.schedule.epochs=1",
    "--config.schedule.warmup_steps=1",
    "--config.text.buckets=(160,)",
    "--config.generation.beams=2",
    "--config.weights.base=",
    "--config.loop.log_every=1",
)


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a launch script on one device."""
    environment = os.environ | {"XLA_FLAGS": xla_test_flags(1), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, str(ROOT / "launch" / f"{script}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment, timeout=900)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Every command of the README's road in its order, at the tiny size; the folder, and what each printed."""
    out = tmp_path_factory.mktemp("road")
    shapes, printed = out / "shapes", {}
    write_shapes(shapes, {"train": 3, "val": 2}, seed=5)
    for split in ("train", "val"):
        # Four queries a split are enough.
        lines = (shapes / f"{split}.jsonl").read_text().splitlines(keepends=True)[:4]
        (out / f"{split}.jsonl").write_text("".join(lines))

    def step(name: str, script: str, *arguments: object) -> None:
        done = run(script, *arguments)
        assert done.returncode == 0, f"{name}\n{done.stderr}"
        printed[name] = done.stdout

    def prepare(name: str, annotations: Path) -> None:
        files = f"{annotations}/train.jsonl,{annotations}/val.jsonl"
        media = (f"--videos={shapes}/videos", f"--srts={shapes}/srts", f"--out={out}/prepared")
        step(name, "prepare", "--dataset=shapes", f"--annotations={files}", *media, "--frames=16", "--image_size=56")

    def train(stage: int, *more: str) -> None:
        where = (f"--workdir={out}/runs/stage{stage}", f"--config.data.directory={out}/prepared")
        config = f"--config=configs/calce.py:shapes,stage={stage}"
        step(f"train {stage}", "train", config, *where, *SHORT, f"--config.data.frames={FRAMES[stage]}", *more)

    def infer(stage: int, split: str) -> None:
        name = f"stage{stage}_{split}"
        step(name, "infer", f"--workdir={out}/runs/stage{stage}", f"--split={split}", f"--out={out}/{name}.jsonl")

    prepare("prepare", out)
    train(1)
    for split in ("train", "val"):
        infer(1, split)
        files = (f"--predictions={out}/stage1_{split}.jsonl", f"--annotations={out}/{split}.jsonl")
        step(f"merge {split}", "merge", *files, f"--out={out}/merged/{split}.jsonl")
    prepare("prepare again", out / "merged")
    train(2, f"--config.weights.start={out}/runs/stage1")
    infer(2, "val")
    files = (f"--predictions={out}/stage2_val.jsonl", f"--annotations={out}/val.jsonl")
    step("evaluate", "evaluate", *files, f"--out={out}/scores.json")
    video = sorted((shapes / "videos").glob("*val*.mp4"))[0]
    step(
        "search",
        "search",
        video,
        "--query=A red circle.",
        f"--checkpoint={out}/runs",
        f"--out={out}/search",
        f"--cache={out}/cache",
    )
    return out, printed


@pytest.mark.slow
def test_the_road_of_commands_leads_to_scores_and_moments(road):
    out, printed = road
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
    (found,) = json.loads((out / "search/moments.json").read_text())
    assert [query["query"] for query in found["queries"]] == ["A red circle."]
    assert "<!doctype html>" in (out / "search/index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (
            "train",
            ["--config=configs/calce.py:shapes,stage=1", "--config.seed=7"],
            "belongs to another config; choose another --workdir, or the values it was made with:",
        ),
        ("infer", ["--split=test", "--out={out}/x.jsonl"], "has no split 'test', but train, val; choose one"),
        ("infer", ["--split=val", "--out={out}/x.jsonl", "--data=/nowhere"], "there are no tables in /nowhere:"),
        ("infer", ["--split=val", "--out={out}/x.jsonl", "--mesh=b200"], "config.mesh: 'b200' is none of single"),
    ],
)
def test_mistakes_with_a_trained_run(road, script, arguments, message):
    out, _ = road
    arguments = [argument.format(out=out) for argument in arguments]
    if script == "train":
        arguments += [*SHORT, f"--config.data.directory={out}/prepared", f"--config.data.frames={FRAMES[1]}"]
    with pytest.raises(SystemExit) as told:
        run_script(script, *arguments, f"--workdir={out}/runs/stage1")
    assert message in str(told.value)


CONFIG = "--config=configs/calce.py:shapes,stage=1"


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train", [CONFIG.replace("1", "3")], "ConfigError: --config=configs/calce.py:shapes,stage=3: stage=3 should"),
        ("train", ["--config=configs/calc.py:shapes"], "ConfigError: --config: there is no file configs/calc.py; give"),
        (
            "train",
            [CONFIG, "--config.data.frame=8"],
            "--config.data.frame: no such field; did you mean --config.data",
        ),
        ("train", [CONFIG, "--config.seed=many"], "flag --config.seed=many: invalid literal for int"),
        (
            "train",
            [CONFIG, "--config.data.frames=1", "--config.schedule.epochs=0"],
            "ConfigError: the config is wrong in 2 place(s):\n"
            "  config.data.frames: must be an int >= 2, got 1\n"
            "  config.schedule.epochs: must be an int >= 1, got 0",
        ),
        ("train", [CONFIG, "--config.data.directory=/nowhere"], "TablesError: there are no tables in /nowhere: /nowh"),
        (
            "infer",
            ["--split=val", "--out={out}/x.jsonl"],
            "ConfigError: {out}/config.json: no such file; give the",
        ),
        ("search", ["{rows}", "--query=A cat."], "SearchError: no video among {rows} can be searched; see"),
        (
            "prepare",
            ["--videos=/nowhere", "--annotations={rows}"],
            "PrepareError: videos: there is no folder /nowhere",
        ),
        ("prepare", ["--videos={out}", "--annotations=val=/no.jsonl"], "FileNotFoundError: /no.jsonl: no such file"),
        (
            "prepare",
            ["--videos={out}", "--annotations={out}/rows"],
            "PrepareError: annotations: which split {out}/row",
        ),
        ("merge", ["--predictions={rows}", "--annotations={rows}"], "PredictionError: {rows}, line 1"),
        ("evaluate", ["--predictions={out}/no", "--annotations={rows}"], "{out}/no: no such file of predictions"),
    ],
)
def test_mistakes_are_answered_in_a_line(script, arguments, message, tmp_path):
    rows = tmp_path / "val.jsonl"
    rows.write_text('{"qid": 1, "query": "A cat.", "vid": "a", "duration": 3, "relevant_windows": [[0, 1]]}\n')
    given = [argument.format(out=tmp_path, rows=rows) for argument in arguments]
    given += {
        "train": [f"--workdir={tmp_path}/run"],
        "infer": [f"--workdir={tmp_path}"],
        "prepare": ["--dataset=shapes", f"--out={tmp_path}/out"],
    }.get(script, [f"--out={tmp_path}/out"])
    with pytest.raises(SystemExit) as told:
        run_script(script, *given)
    assert message.format(out=tmp_path, rows=rows) in str(told.value)
    assert list(tmp_path.iterdir()) == [rows]


def test_a_mistake_is_the_last_thing_said_and_no_traceback(tmp_path):
    done = run("train", CONFIG, "--config.data.directory=/nowhere", f"--workdir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("TablesError: there are no tables in /nowhere")
    assert "Traceback" not in done.stderr
