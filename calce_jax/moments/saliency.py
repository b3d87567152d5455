"""A saliency of every two seconds of a video, from the windows of an answer's beams.

Annotators of QVHighlights rate clips inside the true windows alone, so a clip is worth first how probably it is in a
window. Inside, they rate those before the middle highest and those at the borders lowest; `PEAK` is where. Clips
outside all windows, which nobody should find salient, are ranked by their distance, in case a window is too short.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from calce_jax.moments.scoring import BeamHypothesis
from calce_jax.moments.windows import Seconds, Window

CLIP_SECONDS = 2.0  # of the clips that QVHighlights rates
# Chosen on the published predictions for QVHighlights' train split, see docs/ranking.md.
PEAK = 0.4  # of the length of a window, from its start
POSITION_WEIGHT = 1e-3  # so small that only clips which are in a window equally probably change places
DECIMALS = 6


def clip_saliency(hypotheses: Sequence[BeamHypothesis], duration: Seconds) -> list[float]:
    """Return a number for each clip of a video, K = duration / 2 s rounded down; higher is more salient.

    Args:
      hypotheses: windows of each beam, and its probability; their sum is 1.
      duration: of the video, in seconds.
    """
    starts = CLIP_SECONDS * np.arange(int(duration / CLIP_SECONDS))
    total = np.zeros(len(starts))
    for hypothesis in hypotheses:
        if hypothesis.windows:
            total += hypothesis.probability * _window_saliency(starts, hypothesis.windows, duration)
    return [round(value, DECIMALS) for value in total.tolist()]


def _window_saliency(
    starts: Float[np.ndarray, " K"], windows: Sequence[Window], duration: Seconds
) -> Float[np.ndarray, " K"]:
    """Return the part of each clip in its best window, and a little more or less by its place."""
    first, last = np.array(windows, np.float64).T[:, :, None]
    overlap = np.minimum(last, starts + CLIP_SECONDS) - np.maximum(first, starts)
    coverage = (np.clip(overlap, 0, CLIP_SECONDS) / CLIP_SECONDS).max(axis=0)
    middle = starts + CLIP_SECONDS / 2
    place = (middle - first) / np.maximum(last - first, CLIP_SECONDS)
    inside = np.where((place >= 0) & (place <= 1), np.minimum(place / PEAK, (1 - place) / (1 - PEAK)), 0).max(axis=0)
    distance = np.maximum(np.maximum(first - middle, middle - last), 0).min(axis=0) / duration
    return coverage + POSITION_WEIGHT * (inside - distance)
