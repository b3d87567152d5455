"""A file of predictions scored against a file of annotations."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calce_jax.moments.annotations import Annotation, read_annotations
from calce_jax.moments.metrics.pairing import Matched, match
from calce_jax.moments.metrics.protocols import evaluate
from calce_jax.moments.predictions import Prediction, ranked, read_predictions, same_query
from calce_jax.moments.windows import RankBy

_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What scoring gave.

    Attributes:
      scores: {"reference": {...}, "official": {...}}, percent; empty where no annotated query has true windows, as in
        the QVHighlights test release.
      matched: which queries were scored.
      predictions: one for every annotated query, in the annotations' order, ranked; without windows where there was
        none.
    """

    scores: dict[str, dict[str, Any]]
    matched: Matched
    predictions: list[Prediction]

    def notes(self) -> list[str]:
        """Return what a person has to know about the scores: queries without prediction, predictions without query."""
        matched = self.matched
        notes = [
            _note("annotated queries have no prediction and count as misses", matched.unanswered),
            _note("predictions are for queries that are not annotated, and are not scored", matched.unknown),
            _note("annotated queries have no true windows, and are not scored", matched.without_truth),
            _note("answers were malformed", [case.qid for case in matched.cases if case.malformed]),
        ]
        return [note for note in notes if note]


def _note(words: str, qids: Sequence[str | int]) -> str:
    if not qids:
        return ""
    more = ", ..." if len(qids) > _NAMED else ""
    return f"{len(qids)} {words}: {', '.join(map(str, qids[:_NAMED]))}{more}"


def evaluate_files(predictions: str | Path, annotations: str | Path, rank: RankBy = "given") -> Evaluation:
    """Score a file of predictions against a file of annotations, each in any format its reader knows.

    Args:
      predictions: see `calce_jax.moments.predictions.read_predictions`.
      annotations: see `calce_jax.moments.annotations.read_annotations`.
      rank: the order of each query's windows.

    Raises:
      FileNotFoundError: one of the files is missing.
      PredictionError: predictions that cannot be used.
      AnnotationError: annotations that cannot be used.
      ValueError: no prediction is for an annotated query.
    """
    return evaluate_predictions(read_predictions(predictions), read_annotations(annotations), rank)


def evaluate_predictions(
    predictions: Sequence[Prediction], annotations: Sequence[Annotation], rank: RankBy = "given"
) -> Evaluation:
    """Score predictions against annotations; see `evaluate_files`."""
    answers = {same_query(prediction.qid): ranked(prediction, rank) for prediction in predictions}
    matched = match(list(answers.values()), annotations)
    if len(matched.unanswered) == len(annotations):
        raise ValueError(
            f"none of the {len(predictions)} predictions is for one of the {len(annotations)} annotated queries: "
            f"{_example(predictions)} there, {_example(annotations)} here; give annotations of the same split"
        )
    complete = [
        answers.get(same_query(annotation.qid), Prediction(annotation.qid, annotation.query, annotation.video, []))
        for annotation in annotations
    ]
    counts = {"unanswered": len(matched.unanswered), "unknown": len(matched.unknown), "rank": rank}
    scores = {name: {**result, **counts} for name, result in evaluate(matched.cases).items()} if matched.cases else {}
    return Evaluation(scores, matched, complete)


def _example(rows: Sequence[Prediction] | Sequence[Annotation]) -> str:
    return f"qid {rows[0].qid!r}" if rows else "none"
