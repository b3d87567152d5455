"""Average precision of ranked windows, for all queries and thresholds at once.

Q queries, P predicted windows (best first), G true windows, H thresholds.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from calce_jax.config import Behaviour

# Rounded: linspace itself gives 0.8999999999999999, and overlaps of exactly 9/10 do occur.
THRESHOLDS = np.linspace(0.5, 0.95, 10).round(2)
Windows = Sequence[Sequence[int | float]]


def average_precision(
    predicted: Sequence[Windows], truth: Sequence[Windows], behaviour: Behaviour = "default"
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


def pad(windows: Sequence[Windows]) -> tuple[Float[np.ndarray, "Q W 2"], Bool[np.ndarray, "Q W"]]:
    """Return the windows of every query, padded with zeros, and which of them are real; W is at least 1."""
    counts = np.array([len(row) for row in windows], np.int64)
    present = np.arange(max(counts.max(initial=0), 1))[None, :] < counts[:, None]
    padded = np.zeros((*present.shape, 2))
    padded[present] = np.array([window[:2] for row in windows for window in row], np.float64).reshape(-1, 2)
    return padded, present


def overlaps(predicted: Float[np.ndarray, "Q P 2"], truth: Float[np.ndarray, "Q G 2"]) -> Float[np.ndarray, "Q P G"]:
    """Return intersection over union, the union as the sum of lengths less the intersection; NaN for 0 over 0."""
    first, second = predicted[:, :, None, :], truth[:, None, :, :]
    shared = np.minimum(first[..., 1], second[..., 1]) - np.maximum(first[..., 0], second[..., 0])
    shared = np.maximum(shared, 0.0)
    union = (first[..., 1] - first[..., 0]) + (second[..., 1] - second[..., 0]) - shared
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / union


def first_overlap(
    predicted: Sequence[Windows], truth: Sequence[Windows], behaviour: Behaviour = "default"
) -> Float[np.ndarray, "Q"]:
    """Return the overlap of each query's first predicted window with the true one that it overlaps most.

    The true window is chosen by `overlaps` (the first of equals); the overlap itself is then over the hull of the two.

    Args:
      predicted: a query's windows, best first.
      truth: a query's true windows, at least one.
      behaviour: by default a query without a predicted window overlaps nothing.

    Raises:
      TypeError: under "reference", as there, for a query without a predicted window.
    """
    if behaviour == "reference" and not all(predicted):
        raise TypeError("a query has no predicted window: the reference protocol needs one; use behaviour='default'")
    first, answered = pad([row[:1] for row in predicted])
    true, present = pad(truth)
    closeness = np.where(present[:, None, :], overlaps(first, true), -1.0)
    chosen = np.take_along_axis(true, np.argmax(closeness, axis=2)[..., None], axis=1)
    shared = np.minimum(first[..., 1], chosen[..., 1]) - np.maximum(first[..., 0], chosen[..., 0])
    shared = np.maximum(shared, 0.0)
    hull = np.maximum(first[..., 1], chosen[..., 1]) - np.minimum(first[..., 0], chosen[..., 0])
    return np.divide(shared, hull, out=np.zeros_like(shared), where=answered & (hull != 0))[:, 0]
