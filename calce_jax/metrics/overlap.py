"""Windows of many queries as padded arrays, and their overlaps as the protocols define them.

Q queries, P predicted windows, G true windows; seconds, float64.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

# Rounded: linspace itself gives 0.8999999999999999, and overlaps of exactly 9/10 do occur.
THRESHOLDS = np.linspace(0.5, 0.95, 10).round(2)

Windows = Sequence[Sequence[int | float]]


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
    predicted: Sequence[Windows], truth: Sequence[Windows], behaviour: Literal["default", "reference"] = "default"
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
