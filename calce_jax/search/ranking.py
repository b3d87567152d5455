"""Rank the windows that a model predicts for overlapping segments of a video: one list of scored moments.

The beam search of a segment gives hypotheses, each a set of windows with a probability
(`calce_jax.moments.scoring.BeamHypothesis`). Every window of every hypothesis is a candidate. Its score is the expected
IoU with the nearest window of a hypothesis, where the window is clipped to the segment, averaged over the segments that
contain at least half of it. A score of 1 means that every hypothesis of these segments has exactly this window; scores
of different segments and videos are on the same scale.

Non-maximum suppression then removes a window that shares more than half of the shorter one with a better window.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from calce_jax.moments.scoring import BeamHypothesis, expected_iou
from calce_jax.search.segments import Segment

NMS_THRESHOLD = 0.5  # overlap / length of the shorter window, above which the window with the lower score is removed
MIN_COVERAGE = 0.5  # fraction of a window that a segment must contain for its hypotheses to count
MIN_SCORE_GAP = 1e-6  # between consecutive scores; of equal scores the earlier window comes first


@dataclass(frozen=True)
class ScoredWindow:
    """A window of a video from `start` to `end`, in seconds, with its score in [0, 1].

    `probability` is that of the window being right, see `calce_jax.search.calibration`; None where it is not known.
    """

    start: float
    end: float
    score: float
    probability: float | None = None


def select_moments(
    segments: Sequence[Segment], beams: Sequence[Sequence[BeamHypothesis]], max_moments: int
) -> list[ScoredWindow]:
    """Return the moments of one query in one video, best first.

    Args:
      segments: the segments of the video.
      beams: the hypotheses for each segment; windows in seconds from the segment's start.
      max_moments: maximum length of the list.
    """
    windows = np.unique(
        [
            [segment.start + start, segment.start + end]
            for segment, hypotheses in zip(segments, beams, strict=True)
            for hypothesis in hypotheses
            for start, end in hypothesis.windows
        ],
        axis=0,
    )
    if not len(windows):
        return []
    scores = _window_scores(windows, segments, beams)
    order = np.lexsort((windows[:, 0], -scores))
    selected: list[ScoredWindow] = []
    for i in order:
        start, end = windows[i].tolist()
        if len(selected) < max_moments and all(
            _overlap_fraction(start, end, other) <= NMS_THRESHOLD for other in selected
        ):
            selected.append(ScoredWindow(start, end, float(scores[i])))
    return break_ties(selected)


def break_ties(moments: Sequence[ScoredWindow]) -> list[ScoredWindow]:
    """Return the moments, best first, with strictly decreasing scores of 6 decimals, without those that round to 0."""
    distinct: list[ScoredWindow] = []
    for moment in sorted(moments, key=lambda moment: -moment.score):
        score = round(min(moment.score, distinct[-1].score - MIN_SCORE_GAP if distinct else 1.0), 6)
        if score > 0:
            distinct.append(replace(moment, score=score))
    return distinct


def break_ties_jointly(moments_by_video: Sequence[Sequence[ScoredWindow]]) -> list[list[ScoredWindow]]:
    """Return the moments of each video, with scores that are distinct across all videos."""
    order = sorted(((-m.score, n, i) for n, moments in enumerate(moments_by_video) for i, m in enumerate(moments)))
    distinct = break_ties([moments_by_video[n][i] for _, n, i in order])
    result: list[list[ScoredWindow]] = [[] for _ in moments_by_video]
    for (_, n, _), moment in zip(order, distinct, strict=False):  # those with score 0 were last, and are gone
        result[n].append(moment)
    return result


def _window_scores(
    windows: Float[np.ndarray, "N 2"], segments: Sequence[Segment], beams: Sequence[Sequence[BeamHypothesis]]
) -> Float[np.ndarray, " N"]:
    """Return the score of each of N windows, in seconds of the video."""
    total, num_segments = np.zeros(len(windows)), np.zeros(len(windows))
    lengths = windows[:, 1] - windows[:, 0]
    for segment, hypotheses in zip(segments, beams, strict=True):
        visible = np.clip(windows, segment.start, segment.end)
        covered = np.flatnonzero(visible[:, 1] - visible[:, 0] >= MIN_COVERAGE * lengths)
        total[covered] += expected_iou(visible[covered] - segment.start, hypotheses)
        num_segments[covered] += 1
    return total / np.maximum(num_segments, 1)


def _overlap_fraction(start: float, end: float, other: ScoredWindow) -> float:
    overlap = min(end, other.end) - max(start, other.start)
    return max(overlap, 0.0) / min(end - start, other.end - other.start)
