"""The original's protocol: windows count in the order given, scores are ignored, however many there are."""

from collections.abc import Sequence

from calce_jax.metrics.cases import Case
from calce_jax.metrics.summary import Behaviour, mean_average_precision, recall_at_one, summary


def score(cases: Sequence[Case], behaviour: Behaviour = "default") -> dict:
    """Return R1, mIoU and mAP in percent (see `calce_jax.metrics.summary.summary` for the keys).

    "invalid" counts queries whose first window contains -1, the original's mark of an unreadable answer.

    Args:
      cases: the queries, at least one.
      behaviour: by default a query without a predicted window is a miss; "reference" does in every case what the
        original does: it stops there, and counts windows without length that meet as hits in mAP.

    Raises:
      TypeError: under "reference", a query without a predicted window.
    """
    recall, mean_iou = recall_at_one(cases, behaviour)
    return summary(cases, recall, mean_iou, mean_average_precision(cases, behaviour))
