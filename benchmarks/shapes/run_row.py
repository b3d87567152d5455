"""Train one row of the benchmark with one seed, predict the held-out queries, and score them.

python -m benchmarks.shapes.run_row --out=runs/bench_shapes --job=stage1:0
"""

import argparse
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks.shapes.rows import (
    REHEARSAL_CHANGES,
    ROWS,
    Row,
    result_path,
    row_config,
    stage1_of,
    tables_folder,
    with_fields,
    workdir,
)
from calce_jax.datasets.prepare import read_splits
from calce_jax.datasets.tables import rebuild_queries
from calce_jax.distributed.freed_memory import keep_freed_memory
from calce_jax.inference.look_again import predict_split_twice
from calce_jax.inference.predict_split import predict_split
from calce_jax.inference.trained_run import load_base_model, load_trained_model
from calce_jax.input_pipeline.dataset import table_dir
from calce_jax.moments.annotations import Annotation
from calce_jax.moments.merge import merge_stage1
from calce_jax.moments.metrics.evaluate import evaluate_predictions
from calce_jax.moments.predictions import Prediction
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.training.run import train_run
from calce_jax.training.run_data import open_run_data
from data.shapes.bench.queries import KINDS

SPLITS = ("train", "val", "test")
METRICS = ("R1@0.5", "R1@0.7", "mIoU", "mAP")


def main() -> None:
    """Run one job and write its result."""
    parser = argparse.ArgumentParser(description="Train and score one row of the benchmark with one seed.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the benchmark")
    parser.add_argument("--job", required=True, help="NAME:SEED of a row, or base")
    parser.add_argument("--rehearse", action="store_true", help="one epoch")
    args = parser.parse_args()
    keep_freed_memory()
    name, _, seed = args.job.partition(":")
    changes = REHEARSAL_CHANGES if args.rehearse else {}
    if name == "base":
        result = run_base(args.out, changes)
    else:
        (row,) = [row for row in ROWS if row.name == name]
        result = run_row(args.out, row, int(seed), changes)
    write_atomic(result_path(args.out, args.job), json.dumps(result, indent=2) + "\n")


def run_base(out: Path, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Score the base model, which no stage has trained; it has no seed. `changes`: see `row_config`."""
    config = row_config(Row("base", "before training"), out, 0, changes)
    predictions = predict_split(load_base_model(config), "test", out / "base_test.jsonl")
    return score(predictions, read_annotations_by_split(out)["test"])


def run_row(out: Path, row: Row, seed: int, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Train a row, continuing an earlier call, and return its scores and the seconds of processor time that it took.

    The seconds of a row that is continued are left out: those of the earlier call are not known.

    Args:
      out: the folder of the benchmark, with tables, features, and the run of `row.start`.
      row: what is trained.
      seed: of the run.
      changes: see `row_config`.
    """
    started = process_time()
    if not row.preset:
        predict = predict_split if row.looks == 1 else predict_split_twice
        model = load_trained_model(workdir(out, row.start, seed))
        model = replace(model, config=with_fields(model.config, row.changes))
        path = workdir(out, f"{row.name}_test.jsonl", seed)
        is_continued = any(path.parent.glob(f"{path.name}.*"))
        scores = score(predict(model, "test", path), read_annotations_by_split(out)["test"])
        return scores if is_continued else scores | {"predict_s": process_time() - started}
    if row.stage == 2:
        merge_tables(out, row, seed)
    config, folder = row_config(row, out, seed, changes), workdir(out, row.name, seed)
    is_continued = folder.exists()
    train_run(config, folder, open_run_data(config))
    trained = process_time()
    predictions = predict_split(load_trained_model(folder), "test", folder.with_name(f"{row.name}_test.jsonl"))
    scores = score(predictions, read_annotations_by_split(out)["test"])
    if is_continued:
        return scores
    return scores | {"train_s": trained - started, "predict_s": process_time() - trained}


def merge_tables(out: Path, row: Row, seed: int) -> None:
    """Write the prepared folder of a row of stage 2: windows that a row of stage 1 predicts, and links to videos."""
    tables = tables_folder(out, row, seed)
    model = load_trained_model(workdir(out, stage1_of(row).name, seed))
    merged = {
        # In a file of the row's own: rows that start from the same one run side by side.
        split: merge_stage1(
            rows, predict_split(model, split, workdir(out, f"{row.name}_windows_{split}.jsonl", seed))
        ).annotations
        for split, rows in read_annotations_by_split(out).items()
    }
    if not tables.exists():
        copy = tables.with_name(tables.name + ".part")
        shutil.rmtree(copy, ignore_errors=True)
        source = table_dir(out / "prepared", "videos").parent
        shutil.copytree(source, table_dir(copy, "videos").parent, copy_function=os.link)
        copy.rename(tables)
    rebuild_queries(tables, "shapes", merged)


def read_annotations_by_split(out: Path) -> dict[str, list[Annotation]]:
    """Return the annotations that `benchmarks.shapes.prepare_world` wrote."""
    return read_splits([str(out / "shapes" / f"{split}.jsonl") for split in SPLITS])


def score(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> dict[str, Any]:
    """Return the scores of all queries, of those of each kind, and how well absent ones are told apart, in percent."""
    evaluation = evaluate_predictions(predictions, annotations)
    prediction_by_qid = {prediction.qid: prediction for prediction in predictions}
    by_kind = {}
    for kind in KINDS:
        rows = [row for row in annotations if row.kind == kind]
        if any(row.windows for row in rows):
            scores = evaluate_predictions([prediction_by_qid[row.qid] for row in rows], rows).scores["reference"]
            by_kind[kind] = {name: scores[name] for name in METRICS}
    return {
        "all": {name: evaluation.scores["reference"][name] for name in METRICS},
        "by_kind": by_kind,
        "presence": evaluation.scores.get("presence", {}),
    }


if __name__ == "__main__":
    main()
