"""Fit a `calce_jax.search.calibration.Calibration` to scores of queries that happen in their video, and of others."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression

from calce_jax.moments.metrics.presence import auroc, keeping_threshold
from calce_jax.search.calibration import Calibration
from calce_jax.search.paths import SearchError


def fit_calibration(present: Sequence[float], absent: Sequence[float], is_right: Sequence[bool]) -> Calibration:
    """Return the threshold that keeps 95 % of the queries that happen, and the curve of probabilities.

    Args:
      present: best scores of queries that happen; 0 where nothing was found.
      absent: best scores of queries that do not.
      is_right: whether the best moment of each present query is right; those of absent ones are not.

    Raises:
      SearchError: one of the lists is empty.
    """
    if not present or not absent:
        raise SearchError("no queries to calibrate with", "give a split with windows in two videos or more")
    threshold = keeping_threshold(present)
    scores, probabilities = fit_curve([*present, *absent], [*is_right, *(False for _ in absent)])
    return Calibration(
        threshold=round(threshold, 6),
        kept=float((np.asarray(present) >= threshold).mean()),
        rejected=float((np.asarray(absent) < threshold).mean()),
        auroc=auroc(present, absent),
        num_queries=len(present) + len(absent),
        scores=scores,
        probabilities=probabilities,
    )


def fit_curve(scores: Sequence[float], is_right: Sequence[bool]) -> tuple[list[float], list[float]]:
    """Return scores, ascending, and how often answers of about this score are right: a rising line between points.

    A point is a step of the isotonic regression: the mean score of its answers, and the share of them that is right.
    """
    levels, inverse, counts = np.unique(np.asarray(scores, np.float64), return_inverse=True, return_counts=True)
    shares = np.bincount(inverse, np.asarray(is_right, np.float64)) / counts
    fitted = isotonic_regression(shares, weights=counts)
    starts = fitted.blocks[:-1]
    weights = np.add.reduceat(counts, starts)
    centres = np.add.reduceat(counts * levels, starts) / weights
    return np.round(centres, 6).tolist(), np.round(fitted.x[starts], 4).tolist()
