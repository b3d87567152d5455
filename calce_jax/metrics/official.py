"""The QVHighlights protocol: the first ten windows, in order of their scores for mAP, also by length of the moments."""

import dataclasses
import math
from collections.abc import Sequence

from calce_jax.metrics.cases import Case
from calce_jax.metrics.summary import Behaviour, mean_average_precision, recall_at_one, summary

WINDOW_LIMIT = 10
# Lengths of true windows in seconds: above the first number, up to the second. The release has none above 150.
RANGES = {"short": (0.0, 10.0), "middle": (10.0, 30.0), "long": (30.0, math.inf)}


def score(cases: Sequence[Case], behaviour: Behaviour = "default") -> dict:
    """Return R1, mIoU and mAP in percent (see `calce_jax.metrics.summary.summary` for the keys).

    R1 goes by the first window of the list; mAP by the first ten, those of highest score first, equals in the given
    order, windows without a score as 1. `detail["ranges"]` scores the true windows of one range of lengths at a time,
    over the queries that have any, against all predicted windows; `None` where no query has one.

    Args:
      cases: the queries, at least one.
      behaviour: as in `calce_jax.metrics.reference.score`.

    Raises:
      TypeError: under "reference", a query without a predicted window.
    """
    by_score = [dataclasses.replace(case, predicted=_by_score(case.predicted[:WINDOW_LIMIT])) for case in cases]
    recall, mean_iou = recall_at_one(cases, behaviour)
    result = summary(cases, recall, mean_iou, mean_average_precision(by_score, behaviour))
    result["detail"]["ranges"] = {
        name: _range_scores(_within(cases, *limits), _within(by_score, *limits), behaviour)
        for name, limits in RANGES.items()
    }
    return result


def _range_scores(cases: list[Case], by_score: list[Case], behaviour: Behaviour) -> dict | None:
    if not cases:
        return None
    recall, _ = recall_at_one(cases, behaviour)
    return {"queries": len(cases), "R1": recall, "mAP": mean_average_precision(by_score, behaviour)}


def _by_score(windows: Sequence[Sequence[int | float]]) -> list[Sequence[int | float]]:
    return sorted(windows, key=lambda window: -(window[2] if len(window) > 2 else 1.0))


def _within(cases: Sequence[Case], above: float, up_to: float) -> list[Case]:
    """Return the cases with only those true windows whose length is in the range; none without any."""
    kept = (
        dataclasses.replace(case, truth=[window for window in case.truth if above < window[1] - window[0] <= up_to])
        for case in cases
    )
    return [case for case in kept if case.truth]
