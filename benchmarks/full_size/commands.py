"""The commands that a user types for both stages, from published files to found moments, and out again."""

import json
import shutil
from dataclasses import dataclass

from benchmarks.full_size.workspace import DATASET, Workspace
from calce_jax.video.decode import video_duration


@dataclass(frozen=True)
class Command:
    """A `calce` command: the name of its step, and its arguments."""

    name: str
    arguments: list[str]


# One query to train on, about the second video, and one to evaluate, about the first; windows are on the grid of two
# seconds that QVHighlights has.
QUERIES = (
    ("train", 1, "A man in a hat falls down.", [2, 6]),
    ("val", 0, "A person talks about a space telescope.", [2, 8]),
)
SEARCHED = ("The camera shows a telescope in a large white room.", "A person points at a mirror.")


def write_material(workspace: Workspace) -> None:
    """Copy the videos with their captions, and write the annotations of both splits."""
    workspace.videos.mkdir(parents=True, exist_ok=True)
    for video in workspace.source_videos:
        for path in (video, video.with_suffix(".srt")):
            target = workspace.videos / path.name
            if path.is_file():
                shutil.copyfile(path, target)
            else:
                target.write_text("", encoding="utf-8")  # nothing is said
    for split in ("train", "val"):
        rows = [
            {
                "qid": number,
                "query": query,
                "vid": workspace.source_videos[video].stem,
                "duration": round(video_duration(workspace.source_videos[video]), 3),
                "relevant_windows": [window],
            }
            for number, (of, video, query, window) in enumerate(QUERIES)
            if of == split
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        workspace.annotations(split).write_text(text, encoding="utf-8")


def conversions_in(workspace: Workspace) -> list[Command]:
    """Return the conversions of the published files, and back."""
    run = [f"--size={workspace.size}", f"--run={workspace.preset(1)}"]
    base, bfloat16 = f"base:{workspace.base}", "--dtype=bfloat16"
    published = f"--source=hf:{workspace.blip2},bert:{workspace.bert}"
    trained = f"--source={base},calce:{workspace.checkpoint(1)}"
    return [
        Command("convert_in", ["convert", published, f"--target={base}", bfloat16, *run]),
        Command(
            "convert_back", ["convert", f"--source={base}", f"--target=hf:{workspace.back}", "--dtype=float32", *run]
        ),
        Command("convert_calce_in", ["convert", trained, f"--target=orbax:{workspace.original}", *run]),
        Command(
            "convert_calce_back",
            ["convert", f"--source=orbax:{workspace.original}", f"--target=calce:{workspace.checkpoint_back}"],
        ),
    ]


def prepare(workspace: Workspace, *, merged: bool) -> Command:
    """Return the preparation of the tables of stage 1, or of stage 2 with the windows of stage 1."""
    splits = ("train", "val")
    files = [workspace.merged(split) if merged else workspace.annotations(split) for split in splits]
    frames, side = workspace.run_config(2).data.frames, workspace.model_config().vit.image_size
    return Command(
        "prepare_stage2" if merged else "prepare",
        [
            "prepare",
            f"--dataset={DATASET}",
            f"--videos={workspace.videos}",
            f"--srts={workspace.videos}",
            f"--annotations={','.join(f'{split}={file}' for split, file in zip(splits, files, strict=True))}",
            f"--frames={frames}",
            f"--image_size={side}",
            "--workers=1",
            f"--out={workspace.prepared}",
        ],
    )


def cache_features(workspace: Workspace) -> Command:
    """Return the encoding of every frame of both stages, once."""
    return Command("cache_features", ["cache_features", *workspace.config_flags(2), f"--out={workspace.features}"])


def stage(workspace: Workspace, number: int) -> list[Command]:
    """Return training of a stage for two steps, its continuation by one, and prediction.

    Stage 1 predicts both splits, for stage 2. An epoch is one step; an evaluation takes about as long.
    """
    train = [
        "train",
        *workspace.config_flags(number),
        f"--workdir={workspace.workdir(number)}",
        f"--config.data.features={workspace.features}",
        "--config.data.augment=False",
        "--config.schedule.warmup_steps=1",
        "--config.loop.eval_every=2",
    ]
    if number == 2:
        train.append(f"--config.weights.start={workspace.workdir(1)}")
    steps = [
        Command(f"train_stage{number}", [*train, "--config.schedule.epochs=2"]),
        Command(f"resume_stage{number}", [*train, "--config.schedule.epochs=3"]),
    ]
    for split in ("train", "val") if number == 1 else ("val",):
        out = workspace.predictions(number, split)
        infer = ["infer", f"--workdir={workspace.workdir(number)}", f"--split={split}", f"--out={out}"]
        steps.append(Command(f"infer_stage{number}_{split}", infer))
    return steps


def merges(workspace: Workspace) -> list[Command]:
    """Return the merging of stage 1's predictions into the annotations."""
    return [
        Command(
            f"merge_{split}",
            [
                "merge",
                f"--predictions={workspace.predictions(1, split)}",
                f"--annotations={workspace.annotations(split)}",
                f"--out={workspace.merged(split)}",
            ],
        )
        for split in ("train", "val")
    ]


def results(workspace: Workspace) -> list[Command]:
    """Return scores, the conversions out, and a search of a video with both stages."""
    run, out = f"--source=orbax:{workspace.workdir(2)}", workspace.root / "out"
    predictions, annotations = workspace.predictions(2, "val"), workspace.annotations("val")
    return [
        Command(
            "evaluate",
            [
                "evaluate",
                f"--predictions={predictions}",
                f"--annotations={annotations}",
                f"--out={out / 'scores.json'}",
            ],
        ),
        Command("convert_out_calce", ["convert", run, f"--target=calce:{out / 'checkpoint.pth'}"]),
        Command("convert_out_peft", ["convert", run, f"--target=peft:{out / 'adapter'}"]),
        Command("convert_out_hf", ["convert", run, f"--target=hf:{out / 'blip2'}"]),
        Command(
            "search",
            [
                "search",
                str(workspace.videos / workspace.source_videos[0].name),
                *SEARCHED,
                f"--checkpoint={workspace.root}",
                f"--out={out / 'found'}",
                f"--cache={workspace.root / 'cache'}",
            ],
        ),
    ]
