"""Predictions of two looks: the model reads a video, then the neighbourhood of its best window at twice the rate.

    tables of 2F frames a video
    first look    every other frame, F          -> OUT.looks/first.jsonl.part, a line a query, with all beams
    second look   F frames around the best one  -> OUT.looks/second.jsonl.part, in seconds of the neighbourhood
    both          beams pooled                  -> OUT

The looks are unfinished predictions: the same call continues them, if they depend on nothing that has changed. They are
removed when OUT is written.
"""

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from calce_jax.batch import Batch
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import barrier, is_primary, one_writer, process_info
from calce_jax.distributed.profiling import StepProfiler
from calce_jax.errors import UserError
from calce_jax.inference.partial_predictions import PartialPredictions
from calce_jax.inference.predict_split import (
    DatasetSplit,
    open_split,
    predict_queries,
    profiled_predictor,
    to_prediction,
    warn_unseen_items,
)
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.example import Example
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
from calce_jax.moments.predictions import Prediction, write_predictions
from calce_jax.moments.second_look import pool_looks
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
      profiler: traces batches of the first look, or of the second where the first was finished before.

    Raises:
      UserError: the run reproduces the original, which looks once; or something else is in the place of OUT.looks.
      InputError, FeaturesError: the tables or the features have too few frames of a video.
      TablesError, LockError, PredictionError, OSError: as for `predict_split`.
    """
    config, out = model.config, Path(out)
    if config.behaviour == "reference":
        raise UserError("--look_again: the run has config.behaviour='reference', which looks once", "leave it out")
    whole = open_split(config, split, model.tokenizers, model.model_config)
    examples = list(map(_without_frames, whole.dataset))
    check_frames(examples, config)
    warn_unseen_items(model, whole)
    predict = profiled_predictor(model, whole.queries, profiler or StepProfiler(out.parent, 0, "infer"))
    folder = out.with_name(fit_name(out.name, ".looks"))
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(
            f"{folder}: not a folder, and both looks are written there", "remove it, or choose another --out"
        )
    with one_writer(out.with_name(out.name + ".lock")):
        first_look = PartialPredictions(folder / "first.jsonl", whole.queries)
        first = predict_queries(model, whole, first_look, predict, with_beams=True)
        parts = find_parts(examples, first, config)
        again = _split_of_parts(model, whole, examples, parts)
        second_look = PartialPredictions(folder / "second.jsonl", again.queries)
        second: list[Prediction] = []
        if parts:
            # The neighbourhoods follow from the first look.
            more_inputs = {"first_look.sha256": file_hash(first_look.path)}
            second = predict_queries(model, again, second_look, predict, with_beams=True, more_inputs=more_inputs)
        predictions = pool(whole, first, parts, second, config)
        barrier("both looks read")  # by all hosts, before the first one removes them
        if is_primary():
            write_predictions(out, predictions)
            first_look.remove()
            second_look.remove()
            with suppress(OSError):  # files of others stay, and with them the folder
                folder.rmdir()
        barrier("both looks written")
    return predictions


def _without_frames(example: Example) -> Example:
    return replace(example, keyframes=[])


def check_frames(examples: Sequence[Example], config: RunConfig) -> None:
    """Check, before the first look, that the frames of the second are stored.

    Raises:
      InputError, FeaturesError: they are not, in the video that is named; or not their features.
    """
    frames = RATE * config.data.frames
    for example in {example.video: example for example in examples}.values():
        try:
            stored_frame_positions(example.total_frames, example.indices, frames)
        except InputError as error:
            raise InputError(f"--look_again: video {example.video}: {error.reason}", error.remedy) from None
    if config.data.features and (stored := read_metadata(config.data.features).frames) < frames:
        raise FeaturesError(
            f"--look_again: {config.data.features} has features of {stored} frames of a video, and {frames} are read",
            f"run `calce cache_features` with --config.data.frames={frames}",
        )


def find_parts(examples: Sequence[Example], first: Sequence[Prediction], config: RunConfig) -> dict[int, Neighbourhood]:
    """Return the neighbourhoods of the best windows, by rows of the split; only of queries that are looked at again."""
    parts: dict[int, Neighbourhood] = {}
    for row, (example, prediction) in enumerate(zip(examples, first, strict=True)):
        if prediction.windows:
            window = prediction.windows[0][:2]
            if part := find_neighbourhood(example, window, config.data.frames, config.data.window_grid):
                parts[row] = part
    return parts


def _split_of_parts(
    model: TrainedModel, whole: DatasetSplit, examples: Sequence[Example], parts: dict[int, Neighbourhood]
) -> DatasetSplit:
    """Return the queries about the neighbourhoods, in their order, in seconds of each."""
    dataset = NeighbourhoodDataset(whole.dataset, parts)
    inputs = input_config(model.config, whole.dataset.split, model.model_config, training=False)

    def make_batches(first_batch: int) -> Iterable[Batch]:
        t5, bert = model.tokenizers.t5, model.tokenizers.bert
        return make_iterator(inputs, t5, bert, examples=dataset, first_batch=first_batch, **process_info())

    queries = [crop_example(examples[row], part) for row, part in parts.items()]
    return replace(whole, queries=queries, make_batches=make_batches)


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
