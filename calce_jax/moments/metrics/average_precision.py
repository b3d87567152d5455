"""Average precision of ranked windows and IoU of the first window, for all queries at once.

Q queries, P predicted windows (best first), G true windows, H thresholds.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from calce_jax.config import Behaviour
from calce_jax.moments.windows import iou_matrix

# Rounded: linspace itself gives 0.8999999999999999, and IoUs of exactly 9/10 occur.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10).round(2)
WindowSequence = Sequence[Sequence[int | float]]


def average_precision(
    predicted: Sequence[WindowSequence], truth: Sequence[WindowSequence], behaviour: Behaviour = "default"
) -> Float[np.ndarray, "Q H"]:
    """Return each query's interpolated average precision (0 to 1) at every threshold of `IOU_THRESHOLDS`.

    In order of rank, each predicted window is matched to the unmatched true window of largest IoU, if that is at least
    the threshold; of equal IoUs, to the later one.

    Args:
      predicted: windows of each query, best first; none scores 0.
      truth: true windows of each query, at least one.
      behaviour: where neither a predicted nor a true window has a length, their IoU is undefined; by default that is a
        miss, under "reference", as in the published scorers, a hit.
    """
    predicted_windows, predicted_mask = pad_windows(predicted)
    true_windows, true_mask = pad_windows(truth)
    undefined = np.inf if behaviour == "reference" else 0.0
    ious = iou_matrix(predicted_windows, true_windows, undefined=undefined)
    ious = np.where(true_mask[:, None, :], ious, -1.0)
    hits = _match_greedily(ious, predicted_mask)

    num_hits = np.cumsum(hits, axis=2)
    num_tried = np.cumsum(predicted_mask, axis=1)[:, None, :]
    precision = num_hits / np.maximum(num_tried, 1)
    interpolated_precision = np.maximum.accumulate(precision[..., ::-1], axis=2)[..., ::-1]
    return np.sum(interpolated_precision * hits, axis=2) / true_mask.sum(axis=1)[:, None]


def _match_greedily(
    ious: Float[np.ndarray, "Q P G"], predicted_mask: Bool[np.ndarray, "Q P"]
) -> Bool[np.ndarray, "Q H P"]:
    """Return which predicted windows are matched to a true one."""
    num_queries, num_predicted, num_true = ious.shape
    unmatched = np.ones((num_queries, len(IOU_THRESHOLDS), num_true), bool)
    hits = np.zeros((num_queries, len(IOU_THRESHOLDS), num_predicted), bool)
    for position in range(num_predicted):
        # Few queries have many windows: skip those that have none at this rank.
        query_indices = np.flatnonzero(predicted_mask[:, position])
        window_ious = ious[query_indices, position][:, None, :]
        eligible = np.where(
            unmatched[query_indices] & (window_ious >= IOU_THRESHOLDS[None, :, None]), window_ious, -1.0
        )
        matched = num_true - 1 - np.argmax(eligible[..., ::-1], axis=2)
        hit = np.take_along_axis(eligible, matched[..., None], axis=2)[..., 0] >= 0
        hits[query_indices, :, position] = hit
        query, threshold = np.nonzero(hit)
        unmatched[query_indices[query], threshold, matched[query, threshold]] = False
    return hits


def pad_windows(windows: Sequence[WindowSequence]) -> tuple[Float[np.ndarray, "Q W 2"], Bool[np.ndarray, "Q W"]]:
    """Return the windows of every query, padded with zeros, and the mask of real ones; W is at least 1."""
    counts = np.array([len(row) for row in windows], np.int64)
    window_mask = np.arange(max(counts.max(initial=0), 1))[None, :] < counts[:, None]
    padded = np.zeros((*window_mask.shape, 2))
    padded[window_mask] = np.array([window[:2] for row in windows for window in row], np.float64).reshape(-1, 2)
    return padded, window_mask


def compute_top1_iou(
    predicted: Sequence[WindowSequence], truth: Sequence[WindowSequence], behaviour: Behaviour = "default"
) -> Float[np.ndarray, "Q"]:
    """Return the overlap of each query's first predicted window with the true window of largest IoU.

    The true window is chosen by `iou_matrix` (the first of equals); the overlap that is returned is the intersection
    over the hull of the two windows, as the original computes it.

    Args:
      predicted: windows of each query, best first.
      truth: true windows of each query, at least one.
      behaviour: by default a query without a predicted window has overlap 0.

    Raises:
      TypeError: under "reference", as in the original, for a query without a predicted window.
    """
    if behaviour == "reference" and not all(predicted):
        raise TypeError("a query has no predicted window: the reference protocol needs one; use behaviour='default'")
    top_windows, top_mask = pad_windows([row[:1] for row in predicted])
    true_windows, true_mask = pad_windows(truth)
    ious = np.where(true_mask[:, None, :], iou_matrix(top_windows, true_windows, undefined=np.nan), -1.0)
    matched_windows = np.take_along_axis(true_windows, np.argmax(ious, axis=2)[..., None], axis=1)
    intersection = np.minimum(top_windows[..., 1], matched_windows[..., 1]) - np.maximum(
        top_windows[..., 0], matched_windows[..., 0]
    )
    intersection = np.maximum(intersection, 0.0)
    hull = np.maximum(top_windows[..., 1], matched_windows[..., 1]) - np.minimum(
        top_windows[..., 0], matched_windows[..., 0]
    )
    return np.divide(intersection, hull, out=np.zeros_like(intersection), where=top_mask & (hull != 0))[:, 0]
