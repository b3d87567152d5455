"""Scoring a file of predictions against a file of annotations."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calce_jax.moments.annotations import (
    DURATION_TOLERANCE_S,
    Annotation,
    read_annotations,
    windows_beyond_video,
    windows_without_length,
)
from calce_jax.moments.json_rows import name_queries, normalise_qid
from calce_jax.moments.metrics.highlights import HighlightCase, SaliencyError, highlight_scores, rate_clips
from calce_jax.moments.metrics.multi_moment import multi_moment_scores
from calce_jax.moments.metrics.pairing import Pairing, check_any_pair, check_same_queries, pair_predictions
from calce_jax.moments.metrics.presence import presence_case, presence_scores
from calce_jax.moments.metrics.protocols import evaluate_cases
from calce_jax.moments.predictions import Prediction, PredictionError, read_predictions, reorder_windows
from calce_jax.moments.windows import WindowOrder

MIN_PLACEHOLDERS = 10  # queries with the same windows that are too many for chance


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate_files`.

    Attributes:
      scores: {"reference": {...}, "official": {...}}, percent, of the queries that happen in their video; missing where
        there are none. The official ones have "highlights" where clips are rated and predictions have saliency scores.
        With "multi_moment" where a query has several true windows, see `calce_jax.moments.metrics.multi_moment`; and
        "presence" where some queries do not happen, see `calce_jax.moments.metrics.presence`.
      pairing: which queries were scored.
      predictions: one for every annotated query, in the annotations' order, with ordered windows; no windows where the
        query has no prediction.
      annotations: those that were to be answered.
      left_out: ids of annotated queries that were not, see `only_predicted` of `evaluate_files`.
    """

    scores: dict[str, dict[str, Any]]
    pairing: Pairing
    predictions: list[Prediction]
    annotations: Sequence[Annotation]
    left_out: Sequence[str | int] = ()

    def warnings(self) -> list[str]:
        """Return one line for each kind of query that is missing, unknown, unscored or malformed, with ids."""
        pairing = self.pairing
        durations = {row.video: row.duration for row in self.predictions if row.duration is not None}
        without_length = windows_without_length(self.annotations)
        beyond = windows_beyond_video(self.annotations, durations)
        messages = [
            name_queries("annotated queries have no prediction and count as misses", pairing.missing_predictions),
            name_queries(
                "predictions are for queries that are not annotated, and are not scored", pairing.unknown_predictions
            ),
            name_queries("annotated queries have no true windows, and are not scored", pairing.missing_truth),
            name_queries(
                "annotated queries have a true window of no length, which no prediction can meet",
                [row.qid for row in without_length],
            ),
            name_queries(
                f"annotated queries have a true window that ends more than {DURATION_TOLERANCE_S:g} s after its video",
                [row.qid for row in beyond],
            ),
            name_queries("annotated queries have no prediction, and are left out", self.left_out),
            self._placeholder_warning(),
            name_queries("answers were malformed", [case.qid for case in pairing.cases if case.malformed]),
        ]
        return [message for message in messages if message]

    def _placeholder_warning(self) -> str:
        """Return a line if all queries have the same windows, as a file without the truth has in its place."""
        different = {tuple(map(tuple, row.windows)) for row in self.annotations if row.windows}
        if len(different) != 1 or len(self.annotations) < MIN_PLACEHOLDERS:
            return ""
        windows = [list(window) for window in next(iter(different))]
        return f"all {len(self.annotations)} annotated queries have the same true windows, {windows}: placeholders?"


def evaluate_files(
    predictions: str | Path,
    annotations: str | Path,
    window_order: WindowOrder = "given",
    *,
    only_predicted: bool = False,
) -> Evaluation:
    """Score a file of predictions against a file of annotations, each in any format its reader knows.

    Args:
      predictions: see `calce_jax.moments.predictions.read_predictions`.
      annotations: see `calce_jax.moments.annotations.read_annotations`.
      window_order: the order of each query's windows.
      only_predicted: leave annotated queries without a prediction out, instead of counting them as misses; for a part
        of a benchmark whose other videos are not there. Such scores are not those of the benchmark.

    Raises:
      UserFileNotFoundError: one of the files is missing.
      PredictionError: predictions that cannot be used.
      AnnotationError: annotations that cannot be used.
    """
    rows = read_predictions(predictions)
    if not rows:
        raise PredictionError(f"{predictions} has no predictions", "write them with `calce infer`")
    return evaluate_predictions(rows, read_annotations(annotations), window_order, only_predicted=only_predicted)


def evaluate_predictions(
    predictions: Sequence[Prediction],
    annotations: Sequence[Annotation],
    window_order: WindowOrder = "given",
    *,
    only_predicted: bool = False,
) -> Evaluation:
    """Score predictions against annotations; see `evaluate_files`.

    Raises:
      PredictionError: no prediction is for an annotated query, or one is about another video or
        sentence than the annotation with its id.
      SaliencyError: some predictions have saliency scores and some have none, or their number is wrong.
    """
    check_any_pair(predictions, annotations)
    check_same_queries(predictions, annotations)
    given_by_qid = {normalise_qid(prediction.qid): prediction for prediction in predictions}
    prediction_by_qid = {qid: reorder_windows(prediction, window_order) for qid, prediction in given_by_qid.items()}
    pairing = pair_predictions(list(prediction_by_qid.values()), annotations)
    left_out: list[str | int] = []
    if only_predicted:
        left_out = pairing.missing_predictions
        annotations = [row for row in annotations if normalise_qid(row.qid) in prediction_by_qid]
        pairing = pair_predictions(list(prediction_by_qid.values()), annotations)
    ranked_predictions = [
        prediction_by_qid.get(
            normalise_qid(annotation.qid), Prediction(annotation.qid, annotation.query, annotation.video, [])
        )
        for annotation in annotations
    ]
    counts = {
        "unanswered": len(pairing.missing_predictions),
        "unknown": len(pairing.unknown_predictions),
        "rank": window_order,
        **({"left_out": len(left_out)} if only_predicted else {}),
    }
    scores = (
        {name: {**result, **counts} for name, result in evaluate_cases(pairing.cases).items()} if pairing.cases else {}
    )
    if scores and (cases := _highlight_cases(ranked_predictions, annotations, pairing)):
        scores["official"]["highlights"] = highlight_scores(cases)
    if any(len(case.true_windows) > 1 for case in pairing.cases):
        scores["multi_moment"] = multi_moment_scores(pairing.cases)
    if pairing.absent:
        # Of the scores as they were predicted: another order of the windows replaces them.
        scores["presence"] = presence_scores(
            [
                presence_case(given_by_qid.get(normalise_qid(row.qid)), is_present=not row.is_absent)
                for row in annotations
                if row.windows is not None
            ]
        )
    return Evaluation(scores, pairing, ranked_predictions, annotations, left_out)


def _highlight_cases(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation], pairing: Pairing
) -> list[HighlightCase]:
    """Return the clips of every query that has ratings; none if no prediction has saliency scores.

    Args:
      predictions: one for every annotation, in their order.
      annotations: the queries.
      pairing: says which queries have no prediction, and are misses.
    """
    rated = [
        (prediction, row)
        for prediction, row in zip(predictions, annotations, strict=True)
        if row.clip_ratings is not None and row.duration is not None
    ]
    missing = {normalise_qid(qid) for qid in pairing.missing_predictions}
    predicted = [prediction for prediction, row in rated if normalise_qid(row.qid) not in missing]
    without = [prediction for prediction in predicted if prediction.saliency is None]
    if len(without) == len(predicted):
        return []
    if without:
        raise SaliencyError(
            f"pred_saliency_scores: {len(without)} of {len(predicted)} predictions have none, such as that of query "
            f"{without[0].qid}",
            "give them for all queries, or for none",
        )
    return [
        HighlightCase(
            row.qid, np.array(prediction.saliency or [], np.float64), rate_clips(row.duration, row.clip_ratings)
        )
        for prediction, row in rated
        if row.duration is not None and row.clip_ratings is not None
    ]
