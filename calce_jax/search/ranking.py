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

from calce_jax.moments.scoring import Beam, expected_overlap
from calce_jax.search.segments import Piece

SAME = 0.5  # the share of the shorter one, above which two windows are one moment
SHOWN = 0.5  # the share of a window that a piece must show to have a say in it
STEP = 1e-6  # by which equal scores are told apart; the order of equals is that of time


@dataclass(frozen=True)
class Moment:
    """From second `start` to second `end` of a video; the score is in [0, 1]."""

    start: float
    end: float
    score: float


def moments_of(pieces: Sequence[Piece], beams: Sequence[Sequence[Beam]], most: int) -> list[Moment]:
    """Return the moments of one video for one query, best first.

    Args:
      pieces: of the video.
      beams: of each piece; their windows are in seconds from its start.
      most: how many moments at most.
    """
    windows = np.unique(
        [
            [piece.start + start, piece.start + end]
            for piece, answers in zip(pieces, beams, strict=True)
            for beam in answers
            for start, end in beam.windows
        ],
        axis=0,
    )
    if not len(windows):
        return []
    scores = _scores(windows, pieces, beams)
    order = np.lexsort((windows[:, 0], -scores))
    found: list[Moment] = []
    for i in order:
        start, end = windows[i].tolist()
        if len(found) < most and all(_shared(start, end, other) <= SAME for other in found):
            found.append(Moment(start, end, float(scores[i])))
    return told_apart(found)


def told_apart(moments: Sequence[Moment]) -> list[Moment]:
    """Return the moments, best first, with scores that fall strictly; those that come to nothing are left out."""
    told: list[Moment] = []
    for moment in sorted(moments, key=lambda moment: -moment.score):
        score = round(min(moment.score, told[-1].score - STEP if told else 1.0), 6)
        if score > 0:
            told.append(replace(moment, score=score))
    return told


def together(lists: Sequence[Sequence[Moment]]) -> list[list[Moment]]:
    """Return the moments of several videos with scores that are told apart across all of them."""
    order = sorted(((-m.score, n, i) for n, moments in enumerate(lists) for i, m in enumerate(moments)))
    flat = told_apart([lists[n][i] for _, n, i in order])
    result: list[list[Moment]] = [[] for _ in lists]
    for (_, n, _), moment in zip(order, flat, strict=False):  # what comes to nothing is at the end
        result[n].append(moment)
    return result


def _scores(
    windows: Float[np.ndarray, "N 2"], pieces: Sequence[Piece], beams: Sequence[Sequence[Beam]]
) -> Float[np.ndarray, " N"]:
    total, voices = np.zeros(len(windows)), np.zeros(len(windows))
    lengths = windows[:, 1] - windows[:, 0]
    for piece, answers in zip(pieces, beams, strict=True):
        part = np.clip(windows, piece.start, piece.end)
        seen = np.flatnonzero(part[:, 1] - part[:, 0] >= SHOWN * lengths)
        total[seen] += expected_overlap(part[seen] - piece.start, answers)
        voices[seen] += 1
    return total / np.maximum(voices, 1)


def _shared(start: float, end: float, other: Moment) -> float:
    overlap = min(end, other.end) - max(start, other.start)
    return max(overlap, 0.0) / min(end - start, other.end - other.start)
