"""The scoring protocols: the original's ("reference") and the official QVHighlights one ("official")."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.moments.metrics.average_precision import IOU_THRESHOLDS, average_precision, compute_top1_iou
from calce_jax.moments.metrics.pairing import EvalCase, last_per_query, merge_by_query

HEADLINE_METRICS = ("R1@0.3", "R1@0.5", "R1@0.7", "R1_avg", "mIoU", "mAP@0.5", "mAP@0.75", "mAP")
THRESHOLDS = IOU_THRESHOLDS.tolist()
MAX_WINDOWS = 10
LOW_THRESHOLD = 0.3  # not part of R1_avg and mAP; reported for Charades-STA, ActivityNet Captions and TimeLens-Bench
# Lengths of true windows in seconds: above the first number, up to the second. The release has none above 150.
LENGTH_RANGES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, math.inf)}


def reference_scores(cases: Sequence[EvalCase], behaviour: Behaviour = "default") -> dict:
    """Return R1, mIoU and mAP in percent (see `summarise` for the keys).

    "invalid" counts queries whose first window contains -1, the original's mark of an unreadable answer.

    Args:
      cases: the queries, at least one.
      behaviour: by default a query without a predicted window is a miss; under "reference", as in the original, it is
        an error, and mAP counts a predicted and a true window that both have no length as a hit.

    Raises:
      TypeError: under "reference", a query without a predicted window.
    """
    return summarise(cases, top1_ious(cases, behaviour), mean_average_precision(cases, behaviour))


def official_scores(cases: Sequence[EvalCase], behaviour: Behaviour = "default") -> dict:
    """Return R1, mIoU and mAP in percent (see `summarise` for the keys).

    R1 uses the first window of the list; mAP the first ten, sorted by score (stable; a window without a score has 1).
    `detail["ranges"]` scores the true windows of one range of lengths at a time, over the queries that have any,
    against all predicted windows; `None` where no query has one.

    Args:
      cases: the queries, at least one.
      behaviour: as in `reference_scores`.

    Raises:
      TypeError: under "reference", a query without a predicted window.
    """
    by_score = order_by_score(cases)
    result = summarise(cases, top1_ious(cases, behaviour), mean_average_precision(by_score, behaviour))
    result["detail"]["ranges"] = {
        name: _range_scores(_with_truth_in_range(cases, *limits), _with_truth_in_range(by_score, *limits), behaviour)
        for name, limits in LENGTH_RANGES.items()
    }
    return result


def _range_scores(cases: list[EvalCase], score_ordered_cases: list[EvalCase], behaviour: Behaviour) -> dict | None:
    if not cases:
        return None
    recall = {str(threshold): recall_at_one(top1_ious(cases, behaviour), threshold) for threshold in THRESHOLDS}
    return {"queries": len(cases), "R1": recall, "mAP": mean_average_precision(score_ordered_cases, behaviour)}


def order_by_score(cases: Sequence[EvalCase]) -> list[EvalCase]:
    """Return the cases with their first ten predicted windows, sorted by score (stable; without a score it is 1)."""

    def sort(windows: Sequence[Sequence[int | float]]) -> list[Sequence[int | float]]:
        return sorted(windows, key=lambda window: -(window[2] if len(window) > 2 else 1.0))

    return [dataclasses.replace(case, predicted_windows=sort(case.predicted_windows[:MAX_WINDOWS])) for case in cases]


def _with_truth_in_range(cases: Sequence[EvalCase], min_length: float, max_length: float) -> list[EvalCase]:
    """Return the cases that have true windows of a length in (min_length, max_length], with only these."""
    narrowed_cases = []
    for case in cases:
        windows = [window for window in case.true_windows if min_length < window[1] - window[0] <= max_length]
        if windows:
            narrowed_cases.append(dataclasses.replace(case, true_windows=windows))
    return narrowed_cases


def to_percent(fraction: float) -> float:
    """Return a fraction in percent, rounded to two decimals."""
    return float(f"{fraction * 100:.2f}")


def top1_ious(cases: Sequence[EvalCase], behaviour: Behaviour) -> Float[np.ndarray, " Q"]:
    """Return the overlap of each query's first window, see `compute_top1_iou`.

    A repeated query counts once, with its last windows.
    """
    cases = last_per_query(cases)
    return compute_top1_iou(
        [case.predicted_windows for case in cases], [case.true_windows for case in cases], behaviour
    )


def recall_at_one(ious: Float[np.ndarray, " Q"], threshold: float) -> float:
    """Return R1 in percent: the share of queries whose first window has at least this overlap."""
    return to_percent(float(np.mean(ious >= threshold)))


def mean_average_precision(cases: Sequence[EvalCase], behaviour: Behaviour) -> dict[str, float]:
    """Return mAP (percent) by threshold, and their "average".

    The predicted and true windows of a repeated query are scored together, as one query.
    """
    cases = merge_by_query(cases)
    precision = average_precision(
        [case.predicted_windows for case in cases], [case.true_windows for case in cases], behaviour
    )
    by_threshold = precision.mean(axis=0)
    names = map(str, THRESHOLDS)
    scores = {name: to_percent(score) for name, score in zip(names, by_threshold, strict=True)}
    return {**scores, "average": to_percent(by_threshold.mean())}


def summarise(cases: Sequence[EvalCase], ious: Float[np.ndarray, " Q"], precision: dict[str, float]) -> dict:
    """Return the scores that every protocol reports; `detail` has all thresholds, and mIoU as an unrounded fraction.

    Args:
      cases: the queries.
      ious: from `top1_ious`.
      precision: from `mean_average_precision`.
    """
    recall = {str(threshold): recall_at_one(ious, threshold) for threshold in THRESHOLDS}
    mean_iou = float(np.mean(ious))
    detail: dict[str, Any] = {"R1": recall, "mAP": precision, "mIoU": mean_iou}
    return {
        "R1@0.3": recall_at_one(ious, LOW_THRESHOLD),
        "R1@0.5": recall["0.5"],
        "R1@0.7": recall["0.7"],
        "R1_avg": float(np.mean(list(recall.values()))),
        "mIoU": to_percent(mean_iou),
        "mAP@0.5": precision["0.5"],
        "mAP@0.75": precision["0.75"],
        "mAP": precision["average"],
        "queries": len(last_per_query(cases)),
        "malformed": sum(case.malformed for case in last_per_query(cases)),
        "invalid": sum(
            bool(case.predicted_windows) and -1 in case.predicted_windows[0][:2] for case in last_per_query(cases)
        ),
        "detail": detail,
    }


PROTOCOLS: dict[str, Callable[[Sequence[EvalCase]], dict[str, Any]]] = {
    "reference": reference_scores,
    "official": official_scores,
}


def evaluate_cases(cases: Sequence[EvalCase]) -> dict[str, dict[str, Any]]:
    """Return {"reference": {...}, "official": {...}}, in percent; a query without a predicted window is a miss.

    Raises:
      UserError: there are no cases.
    """
    if not cases:
        raise UserError("no query to score: no annotated query has true windows", "give annotations that have them")
    return {name: score(cases) for name, score in PROTOCOLS.items()}


def format_table(results: dict[str, dict[str, Any]]) -> str:
    """Return rows of results (a name and its scores in percent) as aligned text under one heading.

    The columns are those of `HEADLINE_METRICS` that all rows have.
    """
    width = max(len(name) for name in results)
    columns = [key for key in HEADLINE_METRICS if all(key in scores for scores in results.values())]
    lines = [" " * width + "".join(f"{key:>10}" for key in columns)]
    for name, scores in results.items():
        lines.append(f"{name:<{width}}" + "".join(f"{scores[key]:10.2f}" for key in columns))
    return "\n".join(lines)
