"""QV-M2's metrics of queries with several moments: how many of them an answer finds.

G-mAP is mAP over all queries; mAP@1, mAP@2 and mAP@3+ are over those with so many true windows. For mR@k the first k
predicted windows are matched to the true ones, each to the unmatched one of largest IoU, where this reaches a
threshold; it is the share of k that is matched, averaged over the queries with k true windows or more and over 14
thresholds from 0.3 to 0.95. mIoU@k is the mean IoU of such a matching without a threshold.

Definitions of the scorer that was released with "When One Moment Isn't Enough" (https://github.com/Zhuo-Cao/QV-M2).

P predicted windows, G true windows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from calce_jax.config import Behaviour
from calce_jax.moments.metrics.average_precision import average_precision
from calce_jax.moments.metrics.pairing import EvalCase, last_per_query, merge_by_query
from calce_jax.moments.metrics.protocols import order_by_score, to_percent
from calce_jax.moments.windows import iou_matrix

RECALL_THRESHOLDS = np.linspace(0.3, 0.95, 14).round(2).tolist()
RANKS = (1, 2, 3)
COLUMNS = ("G-mAP", "mAP@1", "mAP@2", "mAP@3+", "mR@1", "mR@2", "mR@3", "mIoU@1", "mIoU@2", "mIoU@3")


def multi_moment_scores(cases: Sequence[EvalCase], behaviour: Behaviour = "default") -> dict[str, Any]:
    """Return the scores in percent by the names of `COLUMNS`, and the numbers of queries; `None` where there are none.

    `detail` has "R@k" by threshold.

    Args:
      cases: the queries, at least one.
      behaviour: by default a query with fewer than k predicted windows has not found the others; under "reference", as
        in the released scorer, it is left out of mR@k and mIoU@k, and one without any is left out everywhere.
    """
    if behaviour == "reference":
        cases = [case for case in cases if case.predicted_windows]
    result: dict[str, Any] = _precision_by_number(cases, behaviour)
    cases, detail = last_per_query(cases), {}
    for rank in RANKS:
        min_predicted = rank if behaviour == "reference" else 0
        several = [
            case for case in cases if len(case.true_windows) >= rank and len(case.predicted_windows) >= min_predicted
        ]
        recall, mean_iou = _recall_at(rank, several) if several else (None, None)
        result[f"mR@{rank}"] = recall and round(float(np.mean(list(recall.values()))), 2)
        result[f"mIoU@{rank}"] = mean_iou
        detail[f"R@{rank}"] = recall
    return {**{name: result[name] for name in COLUMNS}, "queries": result["queries"], "detail": detail}


def _precision_by_number(cases: Sequence[EvalCase], behaviour: Behaviour) -> dict[str, Any]:
    """Return G-mAP, mAP by the number of true windows, and how many queries have it."""
    cases = merge_by_query(order_by_score(cases))
    precision = average_precision(
        [case.predicted_windows for case in cases], [case.true_windows for case in cases], behaviour
    ).mean(axis=1)
    numbers = np.array([len(case.true_windows) for case in cases])
    by_number = {int(number): float(precision[numbers == number].mean()) for number in np.unique(numbers)}
    # As released: each number of windows from 3 on weighs the same, however many queries have it.
    many = [mean for number, mean in by_number.items() if number >= 3]
    return {
        "G-mAP": to_percent(float(precision.mean())),
        "mAP@1": to_percent(by_number[1]) if 1 in by_number else None,
        "mAP@2": to_percent(by_number[2]) if 2 in by_number else None,
        "mAP@3+": to_percent(float(np.mean(many))) if many else None,
        "queries": {
            "1": int((numbers == 1).sum()),
            "2": int((numbers == 2).sum()),
            "3+": int((numbers >= 3).sum()),
        },
    }


def _recall_at(rank: int, cases: Sequence[EvalCase]) -> tuple[dict[str, float], float]:
    """Return R@k by threshold and mIoU@k, in percent, of queries with at least k true windows."""
    ious = [
        iou_matrix(
            np.array([window[:2] for window in case.predicted_windows[:rank]], np.float64).reshape(-1, 2),
            np.array([window[:2] for window in case.true_windows], np.float64),
        )
        for case in cases
    ]
    places = rank * len(cases)
    recall = {
        str(threshold): to_percent(sum(len(match_in_order(matrix, threshold)) for matrix in ious) / places)
        for threshold in RECALL_THRESHOLDS
    }
    return recall, to_percent(sum(sum(match_in_order(matrix, 0.0)) for matrix in ious) / places)


def match_in_order(ious: Float[np.ndarray, "P G"], threshold: float) -> list[float]:
    """Return the IoUs of the predicted windows that are matched, in their order.

    Each is matched to the unmatched true window of largest IoU, the first of equals, if that is at least the threshold.
    """
    free, matched = ious.copy(), []
    for row in free:
        best = int(np.argmax(row))
        if row[best] >= threshold:
            matched.append(float(row[best]))
            free[:, best] = -1.0
    return matched


def format_multi_moment(scores: Mapping[str, Any]) -> str:
    """Return the scores as aligned text, a heading and a row."""
    name = "several moments"
    values = "".join(f"{'-' if scores[column] is None else format(scores[column], '.2f'):>8}" for column in COLUMNS)
    return "\n".join([" " * len(name) + "".join(f"{column:>8}" for column in COLUMNS), name + values])
