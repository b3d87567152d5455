"""Predictions for all queries of a split, written batch by batch, so that an interrupted job can be continued."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from absl import logging
from tqdm import tqdm

from calce_jax.batch import Batch
from calce_jax.config import PATH_FIELDS, RunConfig, flatten, is_ignored_on_resume, packaged_path, to_dict
from calce_jax.distributed.multihost import barrier, broadcast_int, is_primary, one_writer, process_info
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.inference.answers import Answer, decode_answers
from calce_jax.inference.partial_predictions import PartialPredictions
from calce_jax.inference.predict_step import BatchPrediction
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.dataset import MomentDataset, open_dataset, table_dir
from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.feature_fingerprint import check_features, check_videos
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.input_pipeline.row_flags import RowFlagCounter
from calce_jax.models.calce import CalceConfig
from calce_jax.moments.metrics import EvalCase
from calce_jax.moments.predictions import Prediction, prediction_to_json, read_predictions
from calce_jax.moments.saliency import clip_saliency
from calce_jax.storage.provenance import file_hash
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
    for prediction in predict(split.make_batches(first_batch)):
        flag_counter.add(np.asarray(prediction.batch.example_index), np.asarray(prediction.batch.row_flags))
        yield from decode_answers(
            prediction,
            t5,
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
    config, out = model.config, Path(out)
    dataset_split = open_split(config, split, model.tokenizers, model.model_config)
    warn_unseen_items(model, dataset_split)
    partial = PartialPredictions(out, dataset_split.queries)
    total, batch_size = len(dataset_split.queries), config.data.eval_batch
    with one_writer(out.with_name(out.name + ".lock")):
        num_done = 0
        if is_primary():
            num_done = partial.resume(prediction_inputs(model, dataset_split), batch_size)
        num_done = broadcast_int(num_done)
        if num_done < total:
            predict_batches = model.compile_predictor(_max_duration(dataset_split.queries))
            profile = profiler or StepProfiler(out.parent, 0, "infer")

            def predict(batches: Iterable[Batch]) -> Iterator[BatchPrediction]:
                with profile:
                    yield from profile.watch(predict_batches(batches))

            answers = predict_answers(
                config, dataset_split, model.tokenizers.t5, predict, first_batch=num_done // batch_size
            )
            # All hosts have all answers; the first host writes them.
            with open(partial.path if is_primary() else os.devnull, "a", encoding="utf-8") as file:
                for answer in _with_progress(answers, split, num_done, total):
                    prediction = to_prediction(
                        dataset_split.queries[answer.row], answer, with_saliency=config.generation.saliency
                    )
                    write_line(file, json.dumps(prediction_to_json(prediction)))
        if is_primary():
            partial.finish()
        barrier("predictions written")
        return read_predictions(out)


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
    predict = model.compile_predictor(_max_duration(whole.queries))
    selected = replace(whole, queries=[whole.queries[row] for row in rows], make_batches=lambda _: batches)
    return list(predict_answers(config, selected, tokenizers.t5, predict))


def prediction_inputs(model: TrainedModel, dataset_split: DatasetSplit) -> dict[str, Any]:
    """Return everything that the predictions of a split depend on, by name, as JSON values.

    Files and folders are given by the SHA-256 of their contents, not by path; large ones (base weights, the videos of
    the tables) by name, size and time of the last change.

    Raises:
      OSError: a file of the run is missing.
    """
    config, dataset = model.config, dataset_split.dataset
    fields = {
        f"config.{name}": value
        for name, value in flatten(to_dict(config))
        if name not in (*PATH_FIELDS, "data.group") and not is_ignored_on_resume(name)
    }
    queries = [
        (query.qid, query.video, query.query, query.items, query.duration, _to_list(query.stage1_windows))
        for query in dataset_split.queries
    ]
    videos = sorted(table_dir(dataset.folder, "videos").glob(f"*-{dataset.split}.*"))
    checkpoint, base, features = model.checkpoint, config.weights.base, config.data.features
    return fields | {
        "split": dataset.split,
        "queries": len(queries),
        "queries.sha256": hashlib.sha256(json.dumps(queries).encode()).hexdigest(),
        "videos.files": hashlib.sha256(json.dumps([_stamp(path) for path in videos]).encode()).hexdigest(),
        "checkpoint.step": int(checkpoint.name) if checkpoint else None,
        "checkpoint.sha256": _folder_hash(checkpoint / "state") if checkpoint else None,
        "base": _stamp(packaged_path(base))[1:] if base else None,
        "features.sha256": file_hash(Path(features) / "features.json") if features else None,
        "t5_tokenizer.sha256": _folder_hash(packaged_path(config.text.t5_tokenizer)),
        "bert_tokenizer.sha256": _folder_hash(packaged_path(config.text.bert_tokenizer)),
    }


def _max_duration(queries: Sequence[Query]) -> float:
    return max(query.duration for query in queries)


def _to_list(windows: Any) -> list[list[float]] | None:
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


def to_prediction(query: Query, answer: Answer, *, with_saliency: bool = False) -> Prediction:
    """Return the line of the predictions file for an answer, on request with the saliency of each clip."""
    duration = int(query.duration) if float(query.duration).is_integer() else query.duration
    moments = answer.moments
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
