"""From what a model answers about overlapping pieces of videos to one ranked list of moments.

A piece's answers are a probability over a few sets of windows (`calce_jax.moments.scoring.Beam`). The score of a window is how
much of it the model is sure of: the expected overlap (IoU) with the nearest window of an answer, averaged over the
pieces that show at least half of the window, and there with the part that they show. So it is 1 where every answer
about every piece that could know names this very window, and means the same in every piece and every file.

Any window of any answer may be a moment. Of windows that lie upon each other, the one with the best score stands for
all; two moments of a list never share more than half of the shorter one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from calce_jax.moments.scoring import BeamHypothesis, expected_iou
from calce_jax.search.segments import Segment

NMS_THRESHOLD = 0.5  # the share of the shorter one, above which two windows are one moment
MIN_COVERAGE = 0.5  # the share of a window that a piece must show to have a say in it
MIN_SCORE_GAP = 1e-6  # by which equal scores are told apart; the order of equals is that of time


@dataclass(frozen=True)
class Moment:
    """From second `start` to second `end` of a video; the score is in [0, 1]."""

    start: float
    end: float
    score: float


def select_moments(
    segments: Sequence[Segment], beams: Sequence[Sequence[BeamHypothesis]], max_moments: int
) -> list[Moment]:
    """Return the moments of one video for one query, best first.

    Args:
      segments: of the video.
      beams: of each piece; their windows are in seconds from its start.
      max_moments: how many moments at most.
    """
    windows = np.unique(
        [
            [segment.start + start, segment.start + end]
            for segment, answers in zip(segments, beams, strict=True)
            for beam in answers
            for start, end in beam.windows
        ],
        axis=0,
    )
    if not len(windows):
        return []
    scores = _window_scores(windows, segments, beams)
    order = np.lexsort((windows[:, 0], -scores))
    selected: list[Moment] = []
    for i in order:
        start, end = windows[i].tolist()
        if len(selected) < max_moments and all(
            _overlap_fraction(start, end, other) <= NMS_THRESHOLD for other in selected
        ):
            selected.append(Moment(start, end, float(scores[i])))
    return break_ties(selected)


def break_ties(moments: Sequence[Moment]) -> list[Moment]:
    """Return the moments, best first, with scores that fall strictly; those that come to nothing are left out."""
    distinct: list[Moment] = []
    for moment in sorted(moments, key=lambda moment: -moment.score):
        score = round(min(moment.score, distinct[-1].score - MIN_SCORE_GAP if distinct else 1.0), 6)
        if score > 0:
            distinct.append(replace(moment, score=score))
    return distinct


def break_ties_jointly(moments_by_video: Sequence[Sequence[Moment]]) -> list[list[Moment]]:
    """Return the moments of several videos with scores that are told apart across all of them."""
    order = sorted(((-m.score, n, i) for n, moments in enumerate(moments_by_video) for i, m in enumerate(moments)))
    distinct = break_ties([moments_by_video[n][i] for _, n, i in order])
    result: list[list[Moment]] = [[] for _ in moments_by_video]
    for (_, n, _), moment in zip(order, distinct, strict=False):  # what comes to nothing is at the end
        result[n].append(moment)
    return result


def _window_scores(
    windows: Float[np.ndarray, "N 2"], segments: Sequence[Segment], beams: Sequence[Sequence[BeamHypothesis]]
) -> Float[np.ndarray, " N"]:
    total, num_segments = np.zeros(len(windows)), np.zeros(len(windows))
    lengths = windows[:, 1] - windows[:, 0]
    for segment, answers in zip(segments, beams, strict=True):
        visible = np.clip(windows, segment.start, segment.end)
        covered = np.flatnonzero(visible[:, 1] - visible[:, 0] >= MIN_COVERAGE * lengths)
        total[covered] += expected_iou(visible[covered] - segment.start, answers)
        num_segments[covered] += 1
    return total / np.maximum(num_segments, 1)


def _overlap_fraction(start: float, end: float, other: Moment) -> float:
    overlap = min(end, other.end) - max(start, other.start)
    return max(overlap, 0.0) / min(end - start, other.end - other.start)
