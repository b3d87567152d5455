"""Average precision of ranked windows, for all queries and thresholds at once.

Q queries, P predicted windows (best first), G true windows, H thresholds.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from calce_jax.metrics.overlap import THRESHOLDS, Windows, overlaps, pad


def average_precision(
    predicted: Sequence[Windows], truth: Sequence[Windows], behaviour: Literal["default", "reference"] = "default"
) -> Float[np.ndarray, "Q H"]:
    """Return each query's interpolated average precision (0 to 1) at every threshold of `THRESHOLDS`.

    Going down the ranking, a predicted window takes the true window that it overlaps most among those that are free and
    overlap it by at least the threshold; of equals, the later one.

    Args:
      predicted: a query's windows, best first; may be empty, which scores 0.
      truth: a query's true windows, at least one.
      behaviour: where a predicted and a true window both have no length their overlap is undefined; by default that is
        a miss, under "reference", as in the published scorers, a hit.
    """
    guesses, guessed = pad(predicted)
    true, present = pad(truth)
    closeness = overlaps(guesses, true)
    closeness = np.where(np.isnan(closeness), np.inf if behaviour == "reference" else 0.0, closeness)
    closeness = np.where(present[:, None, :], closeness, -1.0)
    hits = _hits(closeness, guessed)

    found = np.cumsum(hits, axis=2)
    tried = np.cumsum(guessed, axis=1)[:, None, :]
    precision = found / np.maximum(tried, 1)
    best_from_here = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    return np.sum(best_from_here * hits, axis=2) / present.sum(axis=1)[:, None]


def _hits(closeness: Float[np.ndarray, "Q P G"], guessed: Bool[np.ndarray, "Q P"]) -> Bool[np.ndarray, "Q H P"]:
    """Return which predicted windows take a true one."""
    queries, guesses, truths = closeness.shape
    free = np.ones((queries, len(THRESHOLDS), truths), bool)
    hits = np.zeros((queries, len(THRESHOLDS), guesses), bool)
    for position in range(guesses):
        # Few queries have many windows: those that have none left are not looked at again.
        rows = np.flatnonzero(guessed[:, position])
        close = closeness[rows, position][:, None, :]
        eligible = np.where(free[rows] & (close >= THRESHOLDS[None, :, None]), close, -1.0)
        taken = truths - 1 - np.argmax(eligible[..., ::-1], axis=2)
        hit = np.take_along_axis(eligible, taken[..., None], axis=2)[..., 0] >= 0
        hits[rows, :, position] = hit
        row, threshold = np.nonzero(hit)
        free[rows[row], threshold, taken[row, threshold]] = False
    return hits
