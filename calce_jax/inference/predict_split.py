"""All queries of a split asked of a trained run, the answers written as they come, so that a long job can go on."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
from absl import logging
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from calce_jax.batch import Batch
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import agreed, is_first, meet, this_host
from calce_jax.inference.answers import Answer, read_answers
from calce_jax.inference.predict_step import BatchPrediction
from calce_jax.inference.trained_run import Trained
from calce_jax.input_pipeline import NoteCounter, make_iterator
from calce_jax.input_pipeline.batches import input_config
from calce_jax.input_pipeline.dataset import Query, Tables, open_tables
from calce_jax.input_pipeline.feature_fingerprint import check_features, check_videos
from calce_jax.models.calce import CalceConfig
from calce_jax.moments.metrics import Case
from calce_jax.moments.predictions import Prediction, prediction_row, read_predictions
from calce_jax.text.prompt import answer_tokens
from calce_jax.text.tokenizers import Tokenizers


def answer_split(trained: Trained, split: str, out: str | Path) -> list[Prediction]:
    """Ask every query of a split, and write the predictions.

    They go to `OUT.part` batch by batch; a second run after an interruption goes on with the first batch that is not
    complete there, and the file gets its name when it is whole. Several hosts share the work, and the folder of `out`.

    Args:
      trained: the run.
      split: of the prepared folder in its config.
      out: the JSONL file.

    Returns:
      The predictions, in the order of the queries.

    Raises:
      TablesError: there is no such prepared folder or split.
      OSError: the file cannot be written.
    """
    config, out = trained.config, Path(out)
    opened = open_split(config, split, trained.tokenizers, trained.sizes)
    part = out.with_name(out.name + ".part")
    out.parent.mkdir(parents=True, exist_ok=True)
    done = agreed(_whole_batches(part, config.data.eval_batch) if is_first() else 0)
    max_duration = max(query.duration for query in opened.queries)
    predict = trained.predictor(answer_tokens(trained.tokenizers.t5, max_duration, config.behaviour))
    answers = ask(config, opened, trained.tokenizers.t5, predict, first=done // config.data.eval_batch)
    # All hosts know all answers; one writes them down.
    with part.open("a", encoding="utf-8") if is_first() else open(os.devnull, "w", encoding="utf-8") as file:
        for answer in _shown(answers, split, done, len(opened.queries)):
            write_line(file, json.dumps(prediction_row(predicted(opened.queries[answer.row], answer))))
    if is_first():
        os.replace(part, out)
    meet("answered")
    return read_predictions(out)


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


def _whole_batches(part: Path, batch: int) -> int:
    """Cut an unfinished file back to whole batches, and return how many queries it holds."""
    if not part.exists():
        return 0
    lines = part.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = len(lines) - len(lines) % batch if lines and lines[-1].endswith("\n") else (len(lines) - 1) // batch * batch
    part.write_text("".join(lines[:whole]), encoding="utf-8")
    return whole


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
