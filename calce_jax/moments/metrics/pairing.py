"""Predictions beside the annotations of the same queries, whichever formats they come from."""

import dataclasses
from collections.abc import Sequence

from calce_jax.moments.annotations import Annotation
from calce_jax.moments.predictions import Prediction, same_query


@dataclasses.dataclass(frozen=True)
class Case:
    """A query to score.

    Attributes:
      qid: the query's id.
      predicted: [start, end] or [start, end, score], best first; seconds.
      truth: the true windows [start, end]; seconds, at least one.
      malformed: whether the answer that the windows were read from could not be used as it stood.
    """

    qid: str | int
    predicted: Sequence[Sequence[int | float]]
    truth: Sequence[Sequence[int | float]]
    malformed: bool = False


@dataclasses.dataclass(frozen=True)
class Matched:
    """Predictions beside annotations.

    Attributes:
      cases: one for each annotated query with true windows, in the annotations' order.
      unanswered: ids of annotated queries without a prediction; their cases have no predicted window and are misses.
      unknown: ids of predictions for queries that are not annotated; they are not scored.
      without_truth: ids of annotated queries without true windows; they are not scored.
    """

    cases: list[Case]
    unanswered: list[str | int]
    unknown: list[str | int]
    without_truth: list[str | int]


def match(predictions: Sequence[Prediction], annotations: Sequence[Annotation]) -> Matched:
    """Put each annotated query beside its prediction.

    Both lists are read by functions that refuse repeated ids, so a query has at most one of each.
    """
    answers = {same_query(prediction.qid): prediction for prediction in predictions}
    annotated = {same_query(annotation.qid) for annotation in annotations}
    cases, unanswered, without_truth = [], [], []
    for annotation in annotations:
        prediction = answers.get(same_query(annotation.qid))
        if prediction is None:
            unanswered.append(annotation.qid)
        if annotation.windows:
            windows = prediction.windows if prediction else []
            malformed = prediction is not None and prediction.malformed
            cases.append(Case(annotation.qid, windows, annotation.windows, malformed))
        else:
            without_truth.append(annotation.qid)
    unknown = [prediction.qid for prediction in predictions if same_query(prediction.qid) not in annotated]
    return Matched(cases, unanswered, unknown, without_truth)


def by_query(cases: Sequence[Case]) -> list[Case]:
    """Return one case an id, the last where it repeats, at the place of the first."""
    return list({case.qid: case for case in cases}.values())


def joined_by_query(cases: Sequence[Case]) -> list[Case]:
    """Return one case an id, with the windows of all its cases, predicted and true, one after the other."""
    grouped: dict[str | int, list[Case]] = {}
    for case in cases:
        grouped.setdefault(case.qid, []).append(case)
    return [
        Case(
            qid,
            [window for case in group for window in case.predicted],
            [window for case in group for window in case.truth],
            malformed=group[-1].malformed,
        )
        for qid, group in grouped.items()
    ]
