"""Pairs of predictions and annotations of the same query; ids compare as in `normalise_qid`."""

import dataclasses
from collections.abc import Sequence

from calce_jax.moments.annotations import Annotation
from calce_jax.moments.json_rows import normalise_qid
from calce_jax.moments.predictions import Prediction, PredictionError


@dataclasses.dataclass(frozen=True)
class EvalCase:
    """A query to score.

    Attributes:
      qid: the query's id.
      predicted_windows: [start, end] or [start, end, score], best first; seconds.
      true_windows: the true windows [start, end]; seconds, at least one.
      malformed: whether the answer from which the windows were parsed could not be used unchanged.
    """

    qid: str | int
    predicted_windows: Sequence[Sequence[int | float]]
    true_windows: Sequence[Sequence[int | float]]
    malformed: bool = False


@dataclasses.dataclass(frozen=True)
class Pairing:
    """Result of `pair_predictions`.

    Attributes:
      cases: one for each annotated query with true windows, in the annotations' order.
      missing_predictions: ids of annotated queries without a prediction; their cases have no predicted window.
      unknown_predictions: ids of predictions for queries that are not annotated; they are not scored.
      absent: ids of annotated queries that do not happen in their video; they have no case.
      missing_truth: ids of annotated queries whose true windows are not known; they are not scored.
    """

    cases: list[EvalCase]
    missing_predictions: list[str | int]
    unknown_predictions: list[str | int]
    absent: list[str | int]
    missing_truth: list[str | int]


def pair_predictions(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> Pairing:
    """Pair each annotated query with its prediction.

    `read_predictions` and `read_annotations` refuse repeated ids, so a query has at most one of each.
    """
    prediction_by_qid = {normalise_qid(prediction.qid): prediction for prediction in predictions}
    annotated_qids = {normalise_qid(annotation.qid) for annotation in annotations}
    cases, missing_predictions, absent, missing_truth = [], [], [], []
    for annotation in annotations:
        prediction = prediction_by_qid.get(normalise_qid(annotation.qid))
        if prediction is None:
            missing_predictions.append(annotation.qid)
        if annotation.windows:
            windows = prediction.windows if prediction else []
            malformed = prediction is not None and prediction.malformed
            cases.append(EvalCase(annotation.qid, windows, annotation.windows, malformed))
        else:
            (absent if annotation.is_absent else missing_truth).append(annotation.qid)
    unknown_predictions = [
        prediction.qid for prediction in predictions if normalise_qid(prediction.qid) not in annotated_qids
    ]
    return Pairing(cases, missing_predictions, unknown_predictions, absent, missing_truth)


def check_any_pair(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> None:
    """Check that some prediction has the id of an annotation: otherwise they are of different splits.

    Raises:
      PredictionError: none has; names an id of each.
    """
    annotated_qids = {normalise_qid(annotation.qid) for annotation in annotations}
    if not any(normalise_qid(prediction.qid) in annotated_qids for prediction in predictions):
        raise PredictionError(
            f"none of the {len(predictions)} predictions is for one of the {len(annotations)} annotated queries: "
            f"predictions have {_example_qid(predictions)}, annotations {_example_qid(annotations)}",
            "give annotations of the same split",
        )


def _example_qid(rows: Sequence[Prediction] | Sequence[Annotation]) -> str:
    return f"qid {rows[0].qid!r}" if rows else "none"


def check_same_queries(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> None:
    """Check that predictions are about the videos and sentences of the annotations with the same ids.

    Spaces at the ends do not count, and a video or a sentence that a prediction lacks is not compared.

    Raises:
      PredictionError: they are not; names the first query, both values, and the number of queries that differ.
    """
    annotation_by_qid = {normalise_qid(annotation.qid): annotation for annotation in annotations}
    differences = []
    for prediction in predictions:
        annotation = annotation_by_qid.get(normalise_qid(prediction.qid))
        if annotation is None:
            continue
        for field, predicted, annotated in (
            ("vid", prediction.video, annotation.video),
            ("query", prediction.query, annotation.query),
        ):
            if predicted.strip() not in ("", annotated.strip()):
                differences.append((prediction.qid, field, predicted, annotated))
    if differences:
        qid, field, predicted, annotated = differences[0]
        number = len({normalise_qid(difference[0]) for difference in differences})
        raise PredictionError(
            f"{number} of {len(predictions)} predictions have the id of another query, the first of them qid {qid}: "
            f"{field} is {predicted!r:.80} in the predictions and {annotated!r:.80} in the annotations",
            "give the annotations that the predictions were made for",
        )


def last_per_query(cases: Sequence[EvalCase]) -> list[EvalCase]:
    """Return one case an id: of repeated ids the last case, at the position of the first."""
    return list({case.qid: case for case in cases}.values())


def merge_by_query(cases: Sequence[EvalCase]) -> list[EvalCase]:
    """Return one case an id, with the concatenated predicted and true windows of all its cases."""
    cases_by_qid: dict[str | int, list[EvalCase]] = {}
    for case in cases:
        cases_by_qid.setdefault(case.qid, []).append(case)
    return [
        EvalCase(
            qid,
            [window for case in group for window in case.predicted_windows],
            [window for case in group for window in case.true_windows],
            malformed=group[-1].malformed,
        )
        for qid, group in cases_by_qid.items()
    ]
