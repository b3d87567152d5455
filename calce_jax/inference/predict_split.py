"""Predictions for all queries of a split, written batch by batch, so that an interrupted job can be continued."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import logging
from tqdm import tqdm

from calce_jax.batch import Batch
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import barrier, broadcast_int, is_primary, one_writer, process_info
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.inference.answers import Answer, decode_answers
from calce_jax.inference.partial_predictions import PartialPredictions
from calce_jax.inference.prediction import BatchPrediction
from calce_jax.inference.prediction_inputs import prediction_inputs
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.dataset import MomentDataset, open_dataset
from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.feature_fingerprint import check_features, check_videos
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.input_pipeline.row_flags import RowFlagCounter
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.moments.metrics import EvalCase
from calce_jax.moments.predictions import Prediction, PredictionError, prediction_to_json
from calce_jax.moments.saliency import clip_saliency
from calce_jax.moments.scoring import QueryMoments
from calce_jax.text.text_tokenizer import TextTokenizer
from calce_jax.text.tokenizers import Tokenizers

# Yields the predictions of batches, in input order.
PredictFn = Callable[[Iterable[Batch]], Iterator[BatchPrediction]]


@dataclass(frozen=True)
class DatasetSplit:
    """A split for evaluation: every query once, in the order of the table.

    Fields:
      dataset: queries with their videos.
      queries: the queries alone.
      make_batches: returns a new iterator over this host's parts of batches, beginning with the given batch.
    """

    dataset: MomentDataset
    queries: Sequence[Query]
    make_batches: Callable[[int], Iterable[Batch]]


def open_split(config: RunConfig, split: str, tokenizers: Tokenizers, model_config: CalceConfig) -> DatasetSplit:
    """Open a split for evaluation.

    Raises:
      TablesError: there is no such prepared folder or split.
      FeaturesError: `config.data.features` holds features of another model, or not of all videos.
    """
    dataset = open_dataset(config.data.directory, split)
    queries = list(dataset.queries())
    check_features(config, model_config)
    check_videos(config, split, [query.video for query in queries])
    inputs = input_config(config, split, model_config, training=False)

    def make_batches(first_batch: int) -> Iterable[Batch]:
        return make_iterator(
            inputs, tokenizers.t5, tokenizers.bert, examples=dataset, first_batch=first_batch, **process_info()
        )

    return DatasetSplit(dataset, queries, make_batches)


def predict_answers(
    config: RunConfig, split: DatasetSplit, t5: TextTokenizer, predict: PredictFn, first_batch: int = 0
) -> Iterator[Answer]:
    """Predict the queries of a split, from batch `first_batch` on; log the queries with row flags at the end."""
    flag_counter = RowFlagCounter()
    durations = [query.duration for query in split.queries]
    for prediction in predict(split.make_batches(first_batch)):
        flag_counter.add(np.asarray(prediction.batch.example_index), np.asarray(prediction.batch.row_flags))
        yield from decode_answers(
            prediction,
            t5,
            durations,
            window_order=config.generation.window_order,
            window_source=config.generation.window_source,
            decision=config.generation.decision,
            window_grid=config.data.window_grid,
            behaviour=config.behaviour,
        )
    for line in flag_counter.summary_lines(lambda rows: [str(split.queries[int(row)].qid) for row in rows]):
        logging.warning("%s: %s", split.dataset.split, line)


def make_case(query: Query, answer: Answer) -> EvalCase:
    """Return the predicted windows and those annotated, for the metrics."""
    moments = answer.moments
    predicted = [*moments.windows, *moments.other_windows]
    return EvalCase(query.qid, predicted, query.windows.tolist(), malformed=moments.status != "exact")


def predict_split(
    model: TrainedModel, split: str, out: str | Path, profiler: StepProfiler | None = None
) -> list[Prediction]:
    """Predict every query of a split, and write a JSONL file with one line per query, in their order.

    Lines are appended to `OUT.part` batch by batch, and the file is renamed when it is complete. After an interruption
    the same call continues with the first incomplete batch, see `calce_jax.inference.partial_predictions`. Several
    hosts share the work; all must see the folder of `out`.

    Args:
      model: from `load_trained_model`.
      split: a split of `config.data.directory`.
      out: the JSONL file.
      profiler: traces batches.

    Returns:
      The predictions, in the order of the queries.

    Raises:
      TablesError: there is no such prepared folder or split.
      LockError: another process writes this file (`OUT.lock`).
      PredictionError: something else wrote to `OUT.part` meanwhile.
      OSError: the file cannot be written.
    """
    dataset_split = open_split(model.config, split, model.tokenizers, model.model_config)
    warn_unseen_items(model, dataset_split)
    out = Path(out)
    predict = profiled_predictor(model, dataset_split.queries, profiler or StepProfiler(out.parent, 0, "infer"))
    with one_writer(out.with_name(out.name + ".lock")):
        partial = PartialPredictions(out, dataset_split.queries)
        predictions = predict_queries(model, dataset_split, partial, predict)
        barrier("predictions read")  # by all hosts, before the first one renames the file
        if is_primary():
            partial.finish()
        barrier("predictions finished")
    return predictions


def profiled_predictor(model: TrainedModel, queries: Sequence[Query], profiler: StepProfiler) -> PredictFn:
    """Return a function that predicts batches, for videos as long as those of the queries; it compiles when called."""
    predictors: list[PredictFn] = []

    def predict(batches: Iterable[Batch]) -> Iterator[BatchPrediction]:
        if not predictors:
            predictors.append(model.compile_predictor(max(query.duration for query in queries)))
        with profiler:
            yield from profiler.watch(predictors[0](batches))

    return predict


def predict_queries(
    model: TrainedModel,
    dataset_split: DatasetSplit,
    partial: PartialPredictions,
    predict: PredictFn,
    *,
    with_beams: bool = False,
    more_inputs: Mapping[str, Any] | None = None,
) -> list[Prediction]:
    """Predict the queries of an opened split, or those of them that an interrupted call left.

    Args:
      model: from `load_trained_model`.
      dataset_split: the queries, at least one.
      partial: the file that they are written to, which only this process and its hosts may use.
      predict: from `profiled_predictor`.
      with_beams: whether lines have the answers of all beams.
      more_inputs: what the predictions depend on beside the model and the split, by name; JSON values.

    Raises:
      PredictionError: something else wrote to the file meanwhile.
      OSError: it cannot be written.
    """
    config = model.config
    more_inputs = {**(more_inputs or {}), **({"with_beams": True} if with_beams else {})}
    total, batch_size = len(dataset_split.queries), config.data.eval_batch
    num_done = 0
    if is_primary():
        inputs = prediction_inputs(model, dataset_split.dataset, dataset_split.queries)
        num_done = partial.resume(inputs | more_inputs, batch_size)
    num_done = broadcast_int(num_done)
    if num_done < total:
        answers = predict_answers(
            config, dataset_split, model.tokenizers.t5, predict, first_batch=num_done // batch_size
        )
        # All hosts have all answers; the first host writes them.
        with open(partial.path if is_primary() else os.devnull, "a", encoding="utf-8") as file:
            for answer in _with_progress(answers, dataset_split.dataset.split, num_done, total):
                prediction = to_prediction(
                    dataset_split.queries[answer.row],
                    answer.moments,
                    with_saliency=config.generation.saliency,
                    with_beams=with_beams,
                )
                write_line(file, json.dumps(prediction_to_json(prediction)))
    barrier("predictions written")
    predictions = partial.read()
    if with_beams and (without := [prediction.qid for prediction in predictions if prediction.beams is None]):
        raise PredictionError(
            f"{partial.path}: the answer to query {without[0]!r} has no beams",
            "something else wrote to this file: remove it and run again",
        )
    return predictions


def warn_unseen_items(model: TrainedModel, split: DatasetSplit) -> None:
    """Log a warning if the queries of a split have items, and those that a run was trained on had none."""
    if not model.trained_with_items and (count := sum(bool(query.items) for query in split.queries)):
        logging.warning(
            "%s: %d queries have items in their prompts, and the run was trained on queries without; "
            "its answers may be worse than on tables without items (`calce prepare --behaviour=reference`)",
            split.dataset.split,
            count,
        )


def predict_examples(model: TrainedModel, split: str, rows: Sequence[int]) -> list[Answer]:
    """Predict some queries of a split, by the program that predicts the whole split.

    Args:
      model: from `load_trained_model`.
      split: a split of `config.data.directory`.
      rows: of the queries in its table.

    Returns:
      The answers, in the order of `rows`; the `row` of each counts from 0 in `rows`.

    Raises:
      TablesError, FeaturesError: see `open_split`.
    """
    config, tokenizers = model.config, model.tokenizers
    whole = open_split(config, split, tokenizers, model.model_config)
    inputs = input_config(config, split, model.model_config, training=False)
    examples = [whole.dataset[row] for row in rows]
    batches = make_iterator(inputs, tokenizers.t5, tokenizers.bert, examples=examples, **process_info())
    predict = model.compile_predictor(max(query.duration for query in whole.queries))
    selected = replace(whole, queries=[whole.queries[row] for row in rows], make_batches=lambda _: batches)
    return list(predict_answers(config, selected, tokenizers.t5, predict))


def write_line(file: TextIO, line: str) -> None:
    """Write a line and flush it, so that a later interruption does not lose it.

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


def to_prediction(
    query: Query, moments: QueryMoments, *, with_saliency: bool = False, with_beams: bool = False
) -> Prediction:
    """Return the line of the predictions file for a query, on request with the saliency of each clip, and all beams."""
    duration = int(query.duration) if float(query.duration).is_integer() else query.duration
    beams = [(beam.probability, beam.windows) for beam in moments.hypotheses if beam.is_answer]
    return Prediction(
        query.qid,
        query.query,
        query.video,
        [*moments.windows, *moments.other_windows],
        moments.text,
        moments.status,
        duration,
        [*moments.support, *moments.other_support] or None,
        (clip_saliency(moments.hypotheses, duration) or None) if with_saliency else None,
        answer_windows=len(moments.windows) if moments.other_windows else None,
        presence=moments.presence,
        beams=beams if with_beams else None,
    )


def _with_progress(answers: Iterator[Answer], split: str, num_done: int, total: int) -> Iterator[Answer]:
    return iter(
        tqdm(
            answers,
            desc=f"predict {split}",
            initial=num_done,
            total=total,
            unit="query",
            dynamic_ncols=True,
            disable=not is_primary(),
        )
    )
