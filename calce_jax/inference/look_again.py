"""Predictions of two looks: the model reads a video, then the neighbourhood of its best window at twice the rate.

    tables of 2F frames a video
    first look    every other frame, F          -> OUT.first, a line a query, with the answers of all beams
    second look   F frames around the best one  -> OUT.second, in seconds of the neighbourhood
    both          beams pooled                  -> OUT

Each look can be continued where it was interrupted. The files of both are removed when OUT is written.
"""

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path

from calce_jax.batch import Batch
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import barrier, broadcast_int, is_primary, one_writer, process_info
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.errors import UserError
from calce_jax.inference.predict_split import (
    DatasetSplit,
    PredictFn,
    open_split,
    predict_queries,
    profiled_predictor,
    to_prediction,
    warn_unseen_items,
)
from calce_jax.inference.prediction_inputs import prediction_inputs
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.example import Query
from calce_jax.input_pipeline.feature_store import FeaturesError, read_metadata
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.input_pipeline.neighbourhood import (
    RATE,
    Neighbourhood,
    NeighbourhoodDataset,
    crop_example,
    find_neighbourhood,
)
from calce_jax.input_pipeline.rows import InputError, stored_frame_positions
from calce_jax.moments.predictions import Prediction, read_predictions, write_predictions
from calce_jax.moments.second_look import pool_looks
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.file_names import fit_name
from calce_jax.storage.provenance import file_hash


def predict_split_twice(
    model: TrainedModel, split: str, out: str | Path, profiler: StepProfiler | None = None
) -> list[Prediction]:
    """Predict every query of a split by two looks; otherwise as `calce_jax.inference.predict_split.predict_split`.

    A query that is answered `[]`, whose window is longer than a neighbourhood, or of whose video the model reads every
    frame, keeps its first answer.

    Args:
      model: from `load_trained_model`.
      split: of tables with twice the frames that the model reads.
      out: the JSONL file.
      profiler: traces batches of the first look.

    Raises:
      UserError: the run reproduces the original, which looks once.
      InputError, FeaturesError: the tables or the features have too few frames.
      TablesError, LockError, PredictionError, OSError: as for `predict_split`.
    """
    config, out = model.config, Path(out)
    if config.behaviour == "reference":
        raise UserError("--look_again: the run has config.behaviour='reference', which looks once", "leave it out")
    whole = open_split(config, split, model.tokenizers, model.model_config)
    check_frames(whole, config)
    warn_unseen_items(model, whole)
    predict = profiled_predictor(model, whole.queries, profiler or StepProfiler(out.parent, 0, "infer"))
    first_path, inputs_path, second_path = (
        out.with_name(fit_name(out.name, suffix)) for suffix in (".first", ".first.json", ".second")
    )
    with one_writer(out.with_name(out.name + ".lock")):
        first = _first_look(model, whole, predict, first_path, inputs_path)
        parts = find_parts(whole, first, config)
        second: list[Prediction] = []
        if parts:
            second = _second_look(model, whole, parts, predict, first_path=first_path, path=second_path)
        predictions = pool(whole, first, parts, second, config)
        barrier("both looks read")  # by all hosts, before the first one removes them
        if is_primary():
            write_predictions(out, predictions)
            for path in (first_path, inputs_path, second_path):
                path.unlink(missing_ok=True)
        barrier("both looks written")
    return predictions


def check_frames(whole: DatasetSplit, config: RunConfig) -> None:
    """Check, before the first look, that the frames of the second are stored.

    Raises:
      InputError, FeaturesError: they are not, in the video of the first query; or not their features.
    """
    example, frames = whole.dataset[0], RATE * config.data.frames
    try:
        stored_frame_positions(example.total_frames, example.indices, frames)
    except InputError as error:
        raise InputError(f"--look_again: video {example.video}: {error.reason}", error.remedy) from None
    if config.data.features and (stored := read_metadata(config.data.features).frames) < frames:
        raise FeaturesError(
            f"--look_again: {config.data.features} has features of {stored} frames of a video, and {frames} are read",
            f"run `calce cache_features` with --config.data.frames={frames}",
        )


def _first_look(
    model: TrainedModel, whole: DatasetSplit, predict: PredictFn, path: Path, inputs_path: Path
) -> list[Prediction]:
    """Return the predictions of the first look, those of an earlier call if nothing has changed since."""
    is_done, inputs = False, ""
    if is_primary():
        inputs = json.dumps(prediction_inputs(model, whole.dataset, whole.queries))
        is_done = path.is_file() and inputs_path.is_file() and inputs_path.read_bytes() == inputs.encode()
    if broadcast_int(int(is_done)):
        return read_predictions(path)
    first = predict_queries(model, whole, path, predict, with_beams=True)
    if is_primary():
        write_atomic(inputs_path, inputs)
    return first


def find_parts(whole: DatasetSplit, first: list[Prediction], config: RunConfig) -> dict[int, Neighbourhood]:
    """Return the neighbourhoods of the best windows, by rows of the split; only of queries that are looked at again.

    Raises:
      InputError: the tables have too few frames.
    """
    parts: dict[int, Neighbourhood] = {}
    for row, prediction in enumerate(first):
        if prediction.windows:
            example, window = whole.dataset[row], prediction.windows[0][:2]
            if part := find_neighbourhood(example, window, config.data.frames, config.data.window_grid):
                parts[row] = part
    return parts


def _second_look(
    model: TrainedModel,
    whole: DatasetSplit,
    parts: dict[int, Neighbourhood],
    predict: PredictFn,
    *,
    first_path: Path,
    path: Path,
) -> list[Prediction]:
    """Return the predictions about the neighbourhoods, in their order, in seconds of each."""
    examples = NeighbourhoodDataset(whole.dataset, parts)
    inputs = input_config(model.config, whole.dataset.split, model.model_config, training=False)

    def make_batches(first_batch: int) -> Iterable[Batch]:
        t5, bert = model.tokenizers.t5, model.tokenizers.bert
        return make_iterator(inputs, t5, bert, examples=examples, first_batch=first_batch, **process_info())

    names = [field.name for field in fields(Query)]
    cropped = (crop_example(whole.dataset[row], part) for row, part in parts.items())
    queries = [Query(**{name: getattr(example, name) for name in names}) for example in cropped]
    split = replace(whole, queries=queries, make_batches=make_batches)
    # The neighbourhoods follow from these.
    more_inputs = {"first_look.sha256": file_hash(first_path)}
    return predict_queries(model, split, path, predict, with_beams=True, more_inputs=more_inputs)


def pool(
    whole: DatasetSplit,
    first: list[Prediction],
    parts: dict[int, Neighbourhood],
    second: list[Prediction],
    config: RunConfig,
) -> list[Prediction]:
    """Return the predictions of both looks: pooled where there are two, else of the first."""
    pooled = [replace(prediction, beams=None) for prediction in first]
    for (row, part), again in zip(parts.items(), second, strict=True):
        moments = pool_looks(
            first[row],
            again,
            part.start,
            window_order=config.generation.window_order,
            window_source=config.generation.window_source,
        )
        pooled[row] = to_prediction(whole.queries[row], moments, with_saliency=config.generation.saliency)
    return pooled
