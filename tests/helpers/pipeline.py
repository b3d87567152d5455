"""All commands from videos to moments, run once at the tiny size, in bfloat16 as at the full one."""

import io
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from calce_jax.config import RunConfig, to_dict, validate
from data.shapes.write import write_shapes
from tests.helpers.commands import run_script

ROOT = Path(__file__).parents[2]
FRAMES = {1: 8, 2: 16}
# Every part of training runs; nothing is learned.
SHORT_FIELDS: dict[str, Any] = {
    "model.frozen_dtype": "bfloat16",
    "model.compute_dtype": "bfloat16",
    "mesh": "single",
    "data.batch": 2,
    "data.eval_batch": 2,
    "data.captions": 4,
    "keyframes.clusters": 3,
    "schedule.epochs": 1,
    "schedule.warmup_steps": 1,
    "text.buckets": (160,),
    "generation.beams": 2,
    "loop.log_every": 1,
}
SHORT = tuple(f"--config.{field}={value}" for field, value in SHORT_FIELDS.items())


def shorten(config: RunConfig) -> RunConfig:
    """Return a config of the demo with the values that the pipeline's runs have, so that they share programs."""
    values = to_dict(config)
    for field, value in {**SHORT_FIELDS, "data.frames": FRAMES[config.stage]}.items():
        *room, name = field.split(".")
        (values[room[0]] if room else values)[name] = value
    return validate(values)


class PipelineRun(NamedTuple):
    """The output of the commands.

    Attributes:
      folder: shapes/ (videos), SPLIT.jsonl (annotations), prepared/, runs/ (workdirs and ranker),
        stageN_SPLIT.jsonl (predictions), merged/SPLIT.jsonl, scores.json, search/, cache/.
      printed: stdout by step: "prepare", "train 1", "stage1_val" (infer), "merge val", ..., "evaluate", "search".
    """

    folder: Path
    printed: dict[str, str]


def run_pipeline(out: Path) -> PipelineRun:
    """Run the commands of the README in their order on 5 videos with 8 queries."""
    shapes, printed = out / "shapes", {}
    write_shapes(shapes, {"train": 3, "val": 2}, seed=5)
    for split in ("train", "val"):
        lines = (shapes / f"{split}.jsonl").read_text().splitlines(keepends=True)[::2][:4]
        (out / f"{split}.jsonl").write_text("".join(lines))

    def step(title: str, command: str, *arguments: object) -> None:
        with redirect_stdout(io.StringIO()) as stdout:
            run_script(command, *arguments)
        printed[title] = stdout.getvalue()

    def prepare(title: str, annotations: Path) -> None:
        files = f"{annotations}/train.jsonl,{annotations}/val.jsonl"
        media = (f"--videos={shapes}/videos", f"--srts={shapes}/srts", f"--out={out}/prepared")
        step(title, "prepare", "--dataset=shapes", f"--annotations={files}", *media, "--frames=16", "--image_size=56")

    def train(stage: int, *more: str) -> None:
        folders = (f"--workdir={out}/runs/stage{stage}", f"--config.data.directory={out}/prepared")
        # Both forms of --config: a file, and a preset.
        config = {1: f"{ROOT}/configs/calce.py:shapes,stage=1", 2: "shapes,stage=2"}[stage]
        step(
            f"train {stage}",
            "train",
            f"--config={config}",
            *folders,
            *SHORT,
            f"--config.data.frames={FRAMES[stage]}",
            *more,
        )

    def infer(stage: int, split: str) -> None:
        title = f"stage{stage}_{split}"
        step(title, "infer", f"--workdir={out}/runs/stage{stage}", f"--split={split}", f"--out={out}/{title}.jsonl")

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
    step("fit_ranker", "fit_ranker", f"--checkpoint={out}/runs", "--steps=2")
    video = sorted((shapes / "videos").glob("*val*.mp4"))[0]
    model = (f"--checkpoint={out}/runs", f"--cache={out}/cache")
    step("search", "search", video, "--query=A red circle.", *model, f"--out={out}/search", "--min_score=0")
    return PipelineRun(out, printed)
