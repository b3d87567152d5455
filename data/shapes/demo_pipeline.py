"""The whole road at the tiny size: videos, both stages trained and scored, a page.

Everything goes through the same functions as the full-size run's commands.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import jax
import numpy as np

from calce_jax.config import RunConfig, validate
from calce_jax.datasets.prepare import prepare, read_splits
from calce_jax.datasets.prepared_video import Settings
from calce_jax.datasets.tables import rebuild_queries
from calce_jax.inference.answers import Answer
from calce_jax.inference.predict_split import answer_split
from calce_jax.inference.predictor import ask
from calce_jax.inference.trained_run import Trained, open_base, open_trained
from calce_jax.input_pipeline.dataset import Tables, open_tables
from calce_jax.moments.annotations import Annotation, write_annotations
from calce_jax.moments.merge import merge
from calce_jax.moments.metrics import Case, evaluate, table
from calce_jax.moments.metrics.evaluate import evaluate_predictions
from calce_jax.moments.predictions import Prediction
from calce_jax.report.page import QueryView, SummaryTable, embedded_video, write_page
from calce_jax.report.views import query_view
from calce_jax.storage.atomic_files import write_output
from calce_jax.training.run import train_run
from calce_jax.training.run_data import open_material
from calce_jax.video.decode import encode_jpeg, read_frames
from configs.calce import get_config
from data.shapes.write import write_shapes

VIDEOS = {"train": 160, "val": 24, "test": 60}
KINDS = ("visual", "caption", "several")
METRICS = ("R1@0.5", "R1@0.7", "R1_avg", "mIoU", "mAP@0.5", "mAP@0.75", "mAP")
SHOWN = 24  # queries on the page
PICTURE_SIZE = 112  # pixels of a side of the frames on the page

Scores = dict[str, float]


def run_demo(out: Path, videos: Mapping[str, int] | None = None, seed: int = 0) -> dict[str, Any]:
    """Do it all, going on where an earlier run stopped, and return what `metrics.json` holds.

    Args:
      out: the folder of the run.
      videos: how many for each split; `VIDEOS` unless given.
      seed: of the videos.

    Raises:
      OSError, ValueError, CheckpointError: whatever stops a step; the message names the file and the remedy.
    """
    began = monotonic()
    # Each program is compiled once, also where training, inference and a second run of the demo share it.
    jax.config.update("jax_compilation_cache_dir", str((out / "compiled").absolute()))
    with announced("1 of 7: videos"):
        write_shapes(out / "shapes", dict(videos or VIDEOS), seed)
    splits = read_splits([str(out / "shapes" / f"{split}.jsonl") for split in ("train", "val", "test")])
    with announced("2 of 7: key frames and captions"):
        prepare_shapes(out, splits)
    with announced("3 of 7: training stage 1"):
        untrained = answer_split(open_base(stage_config(out, 1)), "test", out / "predictions" / "base_test.jsonl")
        train_stage(out, 1)
    with announced("4 of 7: stage 1 answers, for stage 2"):
        coarse = open_trained(out / "stage1")
        answers = {
            split: answer_split(coarse, split, out / "predictions" / f"stage1_{split}.jsonl") for split in splits
        }
        merge_splits(out, splits, answers)
    with announced("5 of 7: training stage 2"):
        train_stage(out, 2)
    with announced("6 of 7: scoring on held-out videos"):
        fine = open_trained(out / "stage2")
        test = answer_split(fine, "test", out / "predictions" / "stage2_test.jsonl")
        withheld = answer_without_captions(out, splits, answers)
        results = score(splits["test"], untrained, answers["test"], test, withheld)
    with announced("7 of 7: the page"):
        write_report(out, {"stage 1": coarse, "stage 2": fine}, results)
    results["seconds"] = round(monotonic() - began, 1)
    write_output(out / "metrics.json", json.dumps(results, indent=2) + "\n")
    return results


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"[{what}]", flush=True)
    began = monotonic()
    yield
    print(f"[{what}: {monotonic() - began:.0f} s]", flush=True)


def stage_config(out: Path, stage: int) -> RunConfig:
    """Return the config of `configs/calce.py:shapes,stage=...`, with the demo's folders."""
    config = get_config(f"shapes,stage={stage}")
    start = "" if stage == 1 else str(out / "stage1")
    config.update({"data": {"directory": str(out / "prepared")}, "weights": {"start": start}})
    return validate(config)


def prepare_shapes(out: Path, splits: Mapping[str, list[Annotation]]) -> None:
    """Decode the videos once, with the frames of the larger stage."""
    frames = max(stage_config(out, stage).data.frames for stage in (1, 2))
    done = prepare(
        "shapes",
        dict(splits),
        videos=str(out / "shapes" / "videos"),
        srts=str(out / "shapes" / "srts"),
        out=str(out / "prepared"),
        settings=Settings(frames, image_size=56),
    )
    if done.failures:
        raise ValueError(f"{len(done.failures)} videos could not be prepared, see {out}/prepared/failures.jsonl")


def train_stage(out: Path, stage: int) -> None:
    """Train one stage to the end of its schedule."""
    config = stage_config(out, stage)
    train_run(config, out / f"stage{stage}", open_material(config))


def merge_splits(out: Path, splits: Mapping[str, list[Annotation]], answers: Mapping[str, list[Prediction]]) -> None:
    """Write the annotations with stage 1's windows, and the queries table anew."""
    merged = {split: merge(rows, answers[split]).annotations for split, rows in splits.items()}
    for split, rows in merged.items():
        write_annotations(out / "shapes_stage2" / f"{split}.jsonl", rows)
    rebuild_queries(out / "prepared", "shapes", merged)


def answer_without_captions(
    out: Path, splits: Mapping[str, list[Annotation]], answers: Mapping[str, list[Prediction]]
) -> list[Prediction]:
    """Ask both stages about the test split without captions, so that stage 1's windows tell stage 2 nothing of them."""
    coarse = answer_split(
        open_trained(out / "stage1", use_captions=False),
        "test",
        out / "predictions" / "stage1_test_without_captions.jsonl",
    )
    merge_splits(out, splits, {**answers, "test": coarse})
    fine = answer_split(
        open_trained(out / "stage2", use_captions=False),
        "test",
        out / "predictions" / "stage2_test_without_captions.jsonl",
    )
    # The tables get back what they are to hold; a run that is stopped before merges anew when it goes on.
    merge_splits(out, splits, answers)
    return fine


def score(
    annotations: Sequence[Annotation],
    untrained: Sequence[Prediction],
    coarse: Sequence[Prediction],
    fine: Sequence[Prediction],
    withheld: Sequence[Prediction],
) -> dict[str, Any]:
    """Return the held-out scores, percent, by the original's protocol; `base` is the model before any training."""
    stages = {"base": untrained, "stage1": coarse, "stage2": fine, "stage2_captions_withheld": withheld}
    results: dict[str, Any] = {name: _scores(found, annotations) for name, found in stages.items()}
    results["baselines"] = baselines(annotations)
    results["by_kind"] = {
        kind: {name: _scores(found, some) for name, found in stages.items()}
        for kind in KINDS
        if (some := [row for row in annotations if row.kind == kind])
    }
    results["rank"] = {
        order: _headlines(evaluate_predictions(fine, annotations, order).scores["reference"])
        for order in ("given", "longest", "score")
    }
    results["queries"] = len(annotations)
    results["malformed"] = sum(prediction.malformed for prediction in fine)
    return results


def _scores(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> Scores:
    return _headlines(evaluate_predictions(predictions, annotations).scores["reference"])


def baselines(annotations: Sequence[Annotation], draws: int = 20, seed: int = 0) -> dict[str, Scores]:
    """Return the scores of answering the whole video, and of random windows with lengths as the true ones have."""
    lengths = np.array([end - start for row in annotations for start, end in row.windows])
    rng = np.random.default_rng(seed)

    def drawn(row: Annotation) -> list[float]:
        length = min(float(rng.choice(lengths)), float(row.duration or 0))
        start = float(rng.uniform(0, float(row.duration or 0) - length))
        return [start, start + length]

    def scores(window: Any) -> Scores:
        return _headlines(evaluate([Case(row.qid, [window(row)], row.windows) for row in annotations])["reference"])

    random = [scores(drawn) for _ in range(draws)]
    return {
        "whole_video": scores(lambda row: [0.0, float(row.duration)]),
        "random": {name: round(float(np.mean([each[name] for each in random])), 2) for name in METRICS},
    }


def _headlines(scores: Mapping[str, Any]) -> Scores:
    return {name: round(float(scores[name]), 2) for name in METRICS}


def text_table(results: Mapping[str, Any]) -> str:
    """Return the results as a person reads them in a terminal."""
    rows = {"base": results["base"], "stage 1": results["stage1"], "stage 2": results["stage2"]}
    rows |= {f"stage 2, {kind}": scores["stage2"] for kind, scores in results["by_kind"].items()}
    if "caption" in results["by_kind"]:
        rows["stage 2, caption, captions withheld"] = results["by_kind"]["caption"]["stage2_captions_withheld"]
    rows |= {name.replace("_", " "): scores for name, scores in results["baselines"].items()}
    return table(rows)


def write_report(out: Path, stages: Mapping[str, Trained], results: Mapping[str, Any]) -> None:
    """Write `report.html`: the scores, and queries spread over the test split with what each stage made of them."""
    tables = open_tables(out / "prepared", "test")
    places = np.unique(np.linspace(0, len(tables) - 1, min(SHOWN, len(tables))).round().astype(int))
    examples = [tables[int(place)] for place in places]
    answers = {name: ask(trained, examples) for name, trained in stages.items()}
    views = [
        _view(out, tables, int(place), {name: found[n] for name, found in answers.items()})
        for n, place in enumerate(places)
    ]
    summary = [
        SummaryTable(
            "Held-out videos, percent",
            METRICS,
            [
                (name, [results[key][metric] for metric in METRICS])
                for name, key in (("base, before training", "base"), ("stage 1", "stage1"), ("stage 2", "stage2"))
            ]
            + [
                (name.replace("_", " "), [scores[metric] for metric in METRICS])
                for name, scores in results["baselines"].items()
            ],
        ),
        SummaryTable(
            "R1@0.5 by kind of query",
            ("stage 1", "stage 2", "stage 2, captions withheld"),
            [
                (kind, [scores[name]["R1@0.5"] for name in ("stage1", "stage2", "stage2_captions_withheld")])
                for kind, scores in results["by_kind"].items()
            ],
            "Caption queries can only be answered from what is said.",
        ),
    ]
    about = f"{len(places)} of {len(tables)} queries about videos that no stage was trained on."
    write_page(out / "report.html", "Moments in the shapes world", views, summary, about)


def _view(out: Path, tables: Tables, place: int, answers: Mapping[str, Answer]) -> QueryView:
    example = tables[place]
    video = out / "shapes" / "videos" / f"{example.video}.mp4"
    looked = read_frames(video, len(example.keyframes), PICTURE_SIZE)
    jpegs = encode_jpeg(looked.frames, 80)
    pictures = [(float(second), jpeg) for second, jpeg in zip(looked.times, jpegs, strict=True)]
    return query_view(example, answers, pictures, video_src=embedded_video(video))
