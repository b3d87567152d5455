"""The demo: make videos, prepare them, train both stages at the tiny size, score them, write a page.

Every step calls the functions that the commands of a full-size run call.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from calce_jax.config import RunConfig, read_config
from calce_jax.datasets.prepare import prepare_dataset, read_splits
from calce_jax.datasets.prepared_video import PrepareSettings
from calce_jax.datasets.tables import rebuild_queries
from calce_jax.errors import UserError
from calce_jax.inference.answers import Answer
from calce_jax.inference.extract_features import VideoDataset, extract_features
from calce_jax.inference.predict_split import predict_examples, predict_split
from calce_jax.inference.trained_run import TrainedModel, load_base_model, load_trained_model
from calce_jax.input_pipeline.dataset import open_dataset
from calce_jax.input_pipeline.example import Example
from calce_jax.moments.annotations import Annotation, write_annotations
from calce_jax.moments.merge import merge_stage1
from calce_jax.moments.predictions import Prediction
from calce_jax.presets.runs import get_preset
from calce_jax.report.line_chart import LineChart
from calce_jax.report.page import QueryView, video_data_uri, write_page
from calce_jax.report.views import query_view
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.training.event_reader import read_scalars
from calce_jax.training.run import train_run
from calce_jax.training.run_data import open_run_data
from calce_jax.video.decode import encode_jpeg, read_frames
from data.shapes import VIDEOS_PER_SPLIT
from data.shapes.demo_scores import compute_scores, summary_tables
from data.shapes.write import write_shapes

CURVE_METRICS = ("R1@0.5", "R1@0.7", "mIoU")
MAX_PAGE_QUERIES = 24
PAGE_IMAGE_SIZE = 112  # height and width of the frames on the page, pixels


def run_demo(out: Path, videos: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Any]:
    """Run all steps, continuing an earlier run, and return the content of `metrics.json`.

    Args:
      out: output folder.
      videos: number of videos of each split; by default `VIDEOS_PER_SPLIT`.
      seed: of the videos.

    Raises:
      UserError, OSError: `out` holds a demo of an earlier version, or a step fails; the message names the file and the
        remedy.
    """
    start_time = monotonic()
    _check_version(out)
    with log_step("1 of 7: videos"):
        write_shapes(out / "shapes", dict(videos or VIDEOS_PER_SPLIT), seed)
    splits = read_splits([str(out / "shapes" / f"{split}.jsonl") for split in ("train", "val", "test")])
    with log_step("2 of 7: key frames, captions and features"):
        prepare_shapes(out, splits)
        store_features(out)
    with log_step("3 of 7: training stage 1"):
        untrained = predict_split(
            load_base_model(stage_config(out, 1)), "test", out / "predictions" / "base_test.jsonl"
        )
        train_stage(out, 1)
    with log_step("4 of 7: predictions of stage 1, for stage 2"):
        stage1 = load_trained_model(out / "stage1")
        stage1_predictions = {
            split: predict_split(stage1, split, out / "predictions" / f"stage1_{split}.jsonl") for split in splits
        }
        merge_splits(out, splits, stage1_predictions)
    with log_step("5 of 7: training stage 2"):
        train_stage(out, 2)
    with log_step("6 of 7: scoring on held-out videos"):
        stage2 = load_trained_model(out / "stage2")
        stage2_test = predict_split(stage2, "test", out / "predictions" / "stage2_test.jsonl")
        without_captions = predict_without_captions(out, splits, stage1_predictions)
        results = compute_scores(splits["test"], untrained, stage1_predictions["test"], stage2_test, without_captions)
    with log_step("7 of 7: report"):
        write_report(out, {"stage 1": stage1, "stage 2": stage2}, results)
    results["seconds"] = round(monotonic() - start_time, 1)
    write_atomic(out / "metrics.json", json.dumps(results, indent=2) + "\n")
    return results


def _check_version(out: Path) -> None:
    """Check that runs in `out` can be continued: those of earlier versions read frames, or had another base model.

    Raises:
      UserError: a run is of an earlier version.
    """
    for stage in (1, 2):
        workdir, config = out / f"stage{stage}", stage_config(out, stage)
        if not (workdir / "config.json").is_file():
            continue
        saved = read_config(workdir)
        if not saved.data.features or (saved.weights.base, saved.lora) != (config.weights.base, config.lora):
            raise UserError(
                f"{workdir}: a run of an earlier version of the demo, from another base model or without features",
                f"remove {out}, or choose another --out",
            )


@contextmanager
def log_step(title: str) -> Iterator[None]:
    """Print the title before and the seconds after a step."""
    print(f"[{title}]", flush=True)
    start_time = monotonic()
    yield
    print(f"[{title}: {monotonic() - start_time:.0f} s]", flush=True)


def stage_config(out: Path, stage: int) -> RunConfig:
    """Return the preset "shapes,stage=..." with the demo's folders."""
    config = get_preset(f"shapes,stage={stage}")
    start = "" if stage == 1 else str(out / "stage1")
    return replace(
        config,
        data=replace(config.data, directory=str(out / "prepared"), features=str(out / "features")),
        weights=replace(config.weights, start=start),
    )


def prepare_shapes(out: Path, splits: Mapping[str, list[Annotation]], rate: int = 1) -> None:
    """Decode the videos once, with `rate` times the frames of stage 2, which has more than stage 1."""
    frames = rate * stage_config(out, 2).data.frames
    result = prepare_dataset(
        "shapes",
        dict(splits),
        videos=str(out / "shapes" / "videos"),
        srts=str(out / "shapes" / "srts"),
        out=str(out / "prepared"),
        settings=PrepareSettings(frames, image_size=56),
    )
    if result.failures:
        raise UserError(f"{len(result.failures)} videos could not be prepared", f"see {out}/prepared/failures.jsonl")


def store_features(out: Path, rate: int = 1) -> None:
    """Encode the frames once, for both stages: the vision encoder is frozen, and would encode them in every epoch."""
    config = stage_config(out, 2)
    config = replace(config, data=replace(config.data, frames=rate * config.data.frames))
    extract_features(
        load_base_model(config),
        VideoDataset(str(out / "prepared")),
        out / "features",
        storage_dtype="float32",
    )


def train_stage(out: Path, stage: int) -> None:
    """Train a stage, or continue its training, to the end of its schedule."""
    config = stage_config(out, stage)
    train_run(config, out / f"stage{stage}", open_run_data(config), stop_on_signals=True)


def merge_splits(
    out: Path, splits: Mapping[str, list[Annotation]], predictions: Mapping[str, list[Prediction]]
) -> None:
    """Write the annotations with the windows of stage 1, and replace the queries table."""
    merged = {split: merge_stage1(rows, predictions[split]).annotations for split, rows in splits.items()}
    for split, rows in merged.items():
        write_annotations(out / "shapes_stage2" / f"{split}.jsonl", rows)
    rebuild_queries(out / "prepared", "shapes", merged)


def predict_without_captions(
    out: Path, splits: Mapping[str, list[Annotation]], stage1_predictions: Mapping[str, list[Prediction]]
) -> list[Prediction]:
    """Return predictions of stage 2 on the test split if neither stage has captions.

    Stage 1 predicts without captions too, since its windows would otherwise carry information of them.
    """
    stage1_test = predict_split(
        load_trained_model(out / "stage1", use_captions=False),
        "test",
        out / "predictions" / "stage1_test_without_captions.jsonl",
    )
    merge_splits(out, splits, {**stage1_predictions, "test": stage1_test})
    stage2_test = predict_split(
        load_trained_model(out / "stage2", use_captions=False),
        "test",
        out / "predictions" / "stage2_test_without_captions.jsonl",
    )
    # Restore the tables; a run that is stopped before this merges again when it continues.
    merge_splits(out, splits, stage1_predictions)
    return stage2_test


def write_report(out: Path, stages: Mapping[str, TrainedModel], results: Mapping[str, Any]) -> None:
    """Write `report.html`: the scores, and queries of the test split with the predictions of both stages."""
    dataset = open_dataset(out / "prepared", "test")
    indices = np.unique(np.linspace(0, len(dataset) - 1, min(MAX_PAGE_QUERIES, len(dataset))).round().astype(int))
    examples = [dataset[int(index)] for index in indices]
    answers = {name: predict_examples(model, "test", indices.tolist()) for name, model in stages.items()}
    views = [
        _make_query_view(out, example, {name: stage_answers[n] for name, stage_answers in answers.items()})
        for n, example in enumerate(examples)
    ]
    subtitle = f"{len(indices)} of {len(dataset)} queries about videos that no stage was trained on."
    title, charts = "Moments in the shapes world", learning_curves(out)
    write_page(out / "report.html", title, views, summary_tables(results), subtitle=subtitle, charts=charts)


def learning_curves(out: Path) -> list[LineChart]:
    """Return the loss of both stages by step, and their scores on the validation split by epoch."""
    scalars = {stage: read_scalars(out / f"stage{stage}") for stage in (1, 2)}
    charts = [
        LineChart(
            "Loss of training",
            "steps",
            {f"stage {stage}": list(found.get("Loss/train", {}).items()) for stage, found in scalars.items()},
        )
    ]
    for stage, found in scalars.items():
        epochs = stage_config(out, stage).schedule.epochs
        lines = {metric: found.get(f"eval/{metric}", {}) for metric in CURVE_METRICS}
        charts.append(
            LineChart(
                f"Stage {stage} on the validation videos, percent",
                "epochs",
                {
                    name: [(epochs * step / max(points), y) for step, y in points.items()]
                    for name, points in lines.items()
                },
            )
        )
    return charts


def _make_query_view(out: Path, example: Example, answers: Mapping[str, Answer]) -> QueryView:
    video = out / "shapes" / "videos" / f"{example.video}.mp4"
    page_video = read_frames(video, len(example.keyframes), PAGE_IMAGE_SIZE)
    jpegs = encode_jpeg(page_video.frames, 80)
    pictures = [(float(second), jpeg) for second, jpeg in zip(page_video.times, jpegs, strict=True)]
    return query_view(example, answers, pictures, video_src=video_data_uri(video))
