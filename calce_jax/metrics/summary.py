"""From overlaps and precisions of all queries to the numbers of a table: percent, rounded as published."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from calce_jax.metrics.average_precision import average_precision
from calce_jax.metrics.cases import Case, by_query, joined_by_query
from calce_jax.metrics.overlap import THRESHOLDS, first_overlap

Behaviour = Literal["default", "reference"]


def percent(fraction: float) -> float:
    """Return a fraction in percent with two decimals."""
    return float(f"{fraction * 100:.2f}")


def recall_at_one(cases: Sequence[Case], behaviour: Behaviour) -> tuple[dict[str, float], float]:
    """Return R1 (percent) by threshold, and mIoU as a fraction.

    A query that repeats counts once, with its last windows.
    """
    cases = by_query(cases)
    overlap = first_overlap([case.predicted for case in cases], [case.truth for case in cases], behaviour)
    recall = {str(threshold): percent(np.mean(overlap >= threshold)) for threshold in THRESHOLDS.tolist()}
    return recall, float(np.mean(overlap))


def mean_average_precision(cases: Sequence[Case], behaviour: Behaviour) -> dict[str, float]:
    """Return mAP (percent) by threshold, and their "average".

    Predicted and true windows of a query that repeats are scored together, as one query.
    """
    cases = joined_by_query(cases)
    precision = average_precision([case.predicted for case in cases], [case.truth for case in cases], behaviour)
    by_threshold = precision.mean(axis=0)
    names = map(str, THRESHOLDS.tolist())
    scores = {name: percent(score) for name, score in zip(names, by_threshold, strict=True)}
    return {**scores, "average": percent(by_threshold.mean())}


def summary(cases: Sequence[Case], recall: dict[str, float], mean_iou: float, precision: dict[str, float]) -> dict:
    """Return the keys that every protocol reports; `detail` holds all thresholds and mIoU as an unrounded fraction."""
    detail: dict[str, Any] = {"R1": recall, "mAP": precision, "mIoU": mean_iou}
    return {
        "R1@0.5": recall["0.5"],
        "R1@0.7": recall["0.7"],
        "R1_avg": float(np.mean(list(recall.values()))),
        "mIoU": percent(mean_iou),
        "mAP@0.5": precision["0.5"],
        "mAP@0.75": precision["0.75"],
        "mAP": precision["average"],
        "queries": len(by_query(cases)),
        "malformed": sum(case.malformed for case in by_query(cases)),
        "invalid": sum(bool(case.predicted) and -1 in case.predicted[0][:2] for case in by_query(cases)),
        "detail": detail,
    }
