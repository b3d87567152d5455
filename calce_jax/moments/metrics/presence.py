"""How well a score tells queries that happen in their video from those that do not.

The score of an answer is that of its best window. An answer without a window, `[]`, has the score that other beams give
to their best window (`Prediction.presence`), or else the lowest of all.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calce_jax.moments.metrics.protocols import to_percent
from calce_jax.moments.predictions import Prediction

KEPT = 0.95  # share of the queries that happen which a threshold shall keep


@dataclass(frozen=True)
class PresenceCase:
    """An annotated query, and whether the answer to it says that it happens.

    Attributes:
      is_present: whether the query happens in the video.
      score: of the answer, any scale; -inf where it has no window, and it is not known what other beams say.
      has_window: whether the answer has a window.
    """

    is_present: bool
    score: float
    has_window: bool


def presence_case(prediction: Prediction | None, *, is_present: bool) -> PresenceCase:
    """Return the case of a query; one without a prediction is wrong, whether it happens or not.

    Args:
      prediction: with its windows in any order, and their scores as they were predicted. Windows without a length,
        which files have in place of none, do not count.
      is_present: whether the query happens.
    """
    if prediction is None:
        return PresenceCase(is_present, -math.inf if is_present else math.inf, has_window=not is_present)
    scores = prediction.support or [window[2] for window in prediction.windows]
    found = [score for score, window in zip(scores, prediction.windows, strict=True) if window[0] < window[1]]
    without = -math.inf if prediction.presence is None else prediction.presence
    return PresenceCase(is_present, float(max(found, default=without)), has_window=bool(found))


def auroc(present: Sequence[float], absent: Sequence[float]) -> float:
    """Return the probability that a present query has a higher score than an absent one; ties count half.

    Args:
      present: scores of queries that happen, at least one.
      absent: scores of queries that do not, at least one.
    """
    ranked = np.sort(np.asarray(absent, np.float64))
    lower, up_to = (np.searchsorted(ranked, np.asarray(present, np.float64), side) for side in ("left", "right"))
    return float((lower + up_to).mean() / (2 * len(ranked)))


def keeping_threshold(present: Sequence[float]) -> float:
    """Return the score that at most 5 % of the present queries are below; with it, `score < threshold` rejects.

    Args:
      present: scores of queries that happen, at least one.
    """
    ranked = sorted(present)
    return float(ranked[int((1 - KEPT) * len(ranked))])


def presence_scores(cases: Sequence[PresenceCase]) -> dict[str, Any]:
    """Return scores in percent, and the numbers of queries.

    "AUROC"; "rejected@5%", the share of absent queries that are rejected when 5 % of the present ones are, by
    "threshold@5%"; "answered_none", the share of absent queries without a window; "present_answered_none", that of
    present ones, which are misses. `None` where there are no present queries, or no absent ones; the threshold is
    `None` too where it is not finite, and then rejects nothing.
    """
    present, absent = ([case for case in cases if case.is_present is kind] for kind in (True, False))
    scores, other = [case.score for case in present], [case.score for case in absent]
    threshold = keeping_threshold(scores) if scores else None
    rejected = float(np.mean(np.array(other) < threshold)) if other and threshold is not None else None
    return {
        "AUROC": to_percent(auroc(scores, other)) if scores and other else None,
        "rejected@5%": None if rejected is None else to_percent(rejected),
        "threshold@5%": threshold if threshold is not None and math.isfinite(threshold) else None,
        "answered_none": _share_without_window(absent),
        "present_answered_none": _share_without_window(present),
        "present": len(present),
        "absent": len(absent),
    }


def _share_without_window(cases: Sequence[PresenceCase]) -> float | None:
    return to_percent(float(np.mean([not case.has_window for case in cases]))) if cases else None


def format_presence(scores: Mapping[str, Any]) -> str:
    """Return the scores as aligned text, a heading and a row."""
    columns = {
        "AUROC": scores["AUROC"],
        "rejected@5%": scores["rejected@5%"],
        "answered []": scores["answered_none"],
        "present []": scores["present_answered_none"],
    }
    name = f"{scores['absent']} absent, {scores['present']} present"
    values = "".join(f"{'-' if value is None else format(value, '.2f'):>13}" for value in columns.values())
    return "\n".join([" " * len(name) + "".join(f"{column:>13}" for column in columns), name + values])
