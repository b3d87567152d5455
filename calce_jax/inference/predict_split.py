"""All queries of a split asked of a trained run, the answers written as they come, so that a long job can go on."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import logging
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch
from calce_jax.config import HARMLESS, RunConfig, flat, packaged_path, to_dict
from calce_jax.distributed.multihost import agreed, is_first, meet, one_writer, this_host
from calce_jax.inference.answers import Answer, read_answers
from calce_jax.inference.partial_predictions import PartialPredictions
from calce_jax.inference.predict_step import BatchPrediction
from calce_jax.inference.trained_run import Trained
from calce_jax.input_pipeline import NoteCounter, make_iterator
from calce_jax.input_pipeline.batches import input_config
from calce_jax.input_pipeline.dataset import Query, Tables, open_tables
from calce_jax.input_pipeline.feature_fingerprint import check_features, check_videos
from calce_jax.models.calce import CalceConfig
from calce_jax.moments.metrics import Case
from calce_jax.moments.predictions import Prediction, prediction_row, read_predictions
from calce_jax.storage.provenance import file_hash
from calce_jax.text.prompt import answer_tokens
from calce_jax.text.tokenizers import Tokenizers

# Gives the predictions of batches in their order.
Predict = Callable[[Iterable[Batch]], Iterator[BatchPrediction]]


@dataclass(frozen=True)
class Split:
    """The queries of one split, and the batches that ask them once, in order.

    Fields:
      tables: queries with their videos.
      queries: the queries alone.
      batches: makes a fresh iterator, from the given batch on.
    """

    tables: Tables
    queries: Sequence[Query]
    batches: Callable[[int], Iterable[Batch]]


def open_split(config: RunConfig, split: str, tokenizers: Tokenizers, sizes: CalceConfig) -> Split:
    """Open one split for asking all its queries once.

    Raises:
      TablesError: there is no such prepared folder or split.
      FeaturesError: features are wanted, and are not those of this run, or not of all videos.
    """
    tables = open_tables(config.data.directory, split)
    queries = list(tables.queries())
    check_features(config, sizes)
    check_videos(config, split, [query.video for query in queries])
    inputs = input_config(config, split, sizes, training=False)

    def batches(first: int) -> Iterable[Batch]:
        return make_iterator(inputs, tokenizers.t5, tokenizers.bert, examples=tables, first_batch=first, **this_host())

    return Split(tables, queries, batches)


def ask(
    config: RunConfig, split: Split, t5: PreTrainedTokenizerBase, predict: Predict, first: int = 0
) -> Iterator[Answer]:
    """Ask every query of a split, from batch `first` on; log what did not fit the shapes of a batch."""
    notes = NoteCounter()
    for prediction in predict(split.batches(first)):
        notes.add(np.asarray(prediction.about.row), np.asarray(prediction.about.notes))
        yield from read_answers(prediction, t5, by=config.generation.window_order, behaviour=config.behaviour)
    for line in notes.lines(lambda rows: [str(split.queries[int(row)].qid) for row in rows]):
        logging.warning("%s: %s", split.tables.split, line)


def case_of(query: Query, answer: Answer) -> Case:
    """Return an answer beside the truth."""
    return Case(query.qid, answer.moments.windows, query.windows.tolist(), malformed=answer.moments.status != "exact")


# Fields that name files; what is in these counts, wherever they lie.
PATHS = ("data.directory", "data.features", "weights.base", "weights.start", "text.t5_tokenizer", "text.bert_tokenizer")


def answer_split(trained: Trained, split: str, out: str | Path) -> list[Prediction]:
    """Ask every query of a split, and write the predictions.

    They go to `OUT.part` batch by batch; a second run of the same model over the same split goes on after an
    interruption with the first batch that is not complete there, see `calce_jax.inference.partial_predictions`. The file gets its
    name when it holds one line a query, in their order. Several hosts share the work, and the folder of `out`.

    Args:
      trained: the run.
      split: of the prepared folder in its config.
      out: the JSONL file.

    Returns:
      The predictions, in the order of the queries.

    Raises:
      TablesError: there is no such prepared folder or split.
      LockError: another process writes this file (`OUT.lock`).
      PredictionError: something else wrote to `OUT.part` meanwhile.
      OSError: the file cannot be written.
    """
    config, out = trained.config, Path(out)
    opened = open_split(config, split, trained.tokenizers, trained.sizes)
    part, total, batch = PartialPredictions(out, opened.queries), len(opened.queries), config.data.eval_batch
    with one_writer(out.with_name(out.name + ".lock")):
        done = agreed(part.resume(made_of(trained, opened), batch) if is_first() else 0)
        if done < total:
            max_duration = max(query.duration for query in opened.queries)
            predict = trained.predictor(answer_tokens(trained.tokenizers.t5, max_duration, config.behaviour))
            answers = ask(config, opened, trained.tokenizers.t5, predict, first=done // batch)
            # All hosts know all answers; one writes them down.
            with open(part.path if is_first() else os.devnull, "a", encoding="utf-8") as file:
                for answer in _shown(answers, split, done, total):
                    write_line(file, json.dumps(prediction_row(predicted(opened.queries[answer.row], answer))))
        if is_first():
            part.finish()
        meet("answered")
        return read_predictions(out)


def made_of(trained: Trained, opened: Split) -> dict[str, Any]:
    """Return what the answers to a split depend on, by name, in values that JSON can hold.

    Names of folders are not among them: what they hold is, by SHA-256, or by size and time of the last change where
    it is too large to be read for this (base weights, the videos of the tables).

    Raises:
      OSError: a file of the run is gone.
    """
    config, tables = trained.config, opened.tables
    fields = {
        f"config.{name}": value
        for name, value in flat(to_dict(config))
        if name not in PATHS and not any(name == field or name.startswith(f"{field}.") for field in HARMLESS)
    }
    asked = [
        (query.qid, query.video, query.query, query.items, query.duration, _listed(query.stage1_windows))
        for query in opened.queries
    ]
    videos = sorted((tables.folder / "tables" / "videos").glob(f"*-{tables.split}.*"))
    checkpoint, base, features = trained.checkpoint, config.weights.base, config.data.features
    return fields | {
        "split": tables.split,
        "queries": len(asked),
        "queries.sha256": hashlib.sha256(json.dumps(asked).encode()).hexdigest(),
        "videos.files": hashlib.sha256(json.dumps([_stamp(path) for path in videos]).encode()).hexdigest(),
        "checkpoint.step": int(checkpoint.name) if checkpoint else None,
        "checkpoint.sha256": _folder_hash(checkpoint / "state") if checkpoint else None,
        "base": _stamp(packaged_path(base))[1:] if base else None,
        "features.sha256": file_hash(Path(features) / "features.json") if features else None,
        "t5_tokenizer.sha256": _folder_hash(packaged_path(config.text.t5_tokenizer)),
        "bert_tokenizer.sha256": _folder_hash(packaged_path(config.text.bert_tokenizer)),
    }


def _listed(windows: Any) -> list[list[float]] | None:
    return None if windows is None else windows.tolist()


def _stamp(path: Path) -> list[Any]:
    """Return a file's name, size, and time of the last change in nanoseconds."""
    stat = path.stat()
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _folder_hash(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = [(path.relative_to(folder).as_posix(), file_hash(path)) for path in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def write_line(file: TextIO, line: str) -> None:
    """Write a line so that it is there whatever comes after it.

    Raises:
      OSError: it cannot be written; names the file and the remedy.
    """
    try:
        file.write(line + "\n")
        file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {file.name} ({error.strerror}); make room and run again: it goes on from there",
        ) from error


def predicted(query: Query, answer: Answer) -> Prediction:
    """Return the answer to a query as it is written down."""
    duration = int(query.duration) if float(query.duration).is_integer() else query.duration
    found = answer.moments
    return Prediction(query.qid, query.query, query.video, found.windows, found.text, found.status, duration)


def _shown(answers: Iterator[Answer], split: str, done: int, total: int) -> Iterator[Answer]:
    return iter(
        tqdm(
            answers,
            desc=f"asking {split}",
            initial=done,
            total=total,
            unit="query",
            dynamic_ncols=True,
            disable=not is_first(),
        )
    )
