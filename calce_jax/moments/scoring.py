"""From the answers of a beam search to scored, ranked moments of one query."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from calce_jax.config import Behaviour
from calce_jax.moments.windows import RankBy, Seconds, Status, Window, iou_matrix, parse_windows, rank


@dataclasses.dataclass(frozen=True)
class Beam:
    """One of the answers that were considered: its windows, and its probability among them all (they sum to 1)."""

    windows: list[Window]
    probability: float


@dataclasses.dataclass(frozen=True)
class Moments:
    """What the model answers to one query.

    Attributes:
      windows: [start, end, score], best first; seconds of the video, scores in [0, 1].
      text: the answer the windows were read from.
      status: how well it could be read.
      beams: all answers that were considered, most probable first.
    """

    windows: list[list[float]]
    text: str
    status: Status
    beams: list[Beam] = dataclasses.field(default_factory=list)


def moments(
    texts: Sequence[str],
    log_probabilities: Sequence[float],
    duration: Seconds,
    *,
    by: RankBy,
    behaviour: Behaviour = "default",
) -> Moments:
    """Read the best answer, score its windows by all answers, and rank them.

    A window's score is the support it has: the probability-weighted mean over the beams of its overlap (IoU) with the
    nearest window of each, so 1 means that every answer the model considers has this very window.

    Args:
      texts: the answers, best first, at least one.
      log_probabilities: of each answer, natural logarithm.
      duration: of the video, in seconds.
      by: the order of the windows.
      behaviour: by default the best answer that can be read is used, and the status says "repaired" if it was not the
        first; "reference" reads the first whatever it says, and keeps the order of time.
    """
    parsed = [parse_windows(text, duration) for text in texts]
    chosen = next((i for i, each in enumerate(parsed) if each.windows), 0)
    text, windows, status = texts[chosen], parsed[chosen].windows, parsed[chosen].status
    if behaviour == "reference":
        text, answer = texts[0], parse_windows(texts[0], duration, behaviour="reference")
        windows, status = answer.windows, answer.status
    elif chosen > 0:
        status = "repaired"
    beams = [Beam(each.windows, share) for each, share in zip(parsed, _shares(log_probabilities), strict=True)]
    overlaps = expected_overlap(np.array(windows, np.float64).reshape(-1, 2), beams)
    scores = [round(overlap, 4) for overlap in overlaps.tolist()]
    order = rank(windows, scores, by="given" if behaviour == "reference" else by)
    return Moments([[*map(float, windows[i]), scores[i]] for i in order], text, status, beams)


def expected_overlap(windows: Float[np.ndarray, "N 2"], beams: Sequence[Beam]) -> Float[np.ndarray, " N"]:
    """Return the mean over the beams, by probability, of each window's greatest overlap (IoU) with one of theirs."""
    total = np.zeros(len(windows))
    for beam in beams:
        if beam.windows and len(windows):
            total += beam.probability * iou_matrix(windows, np.array(beam.windows, np.float64)).max(axis=1)
    return total


def _shares(log_probabilities: Sequence[float]) -> list[float]:
    highest = max(log_probabilities)
    weights = [math.exp(value - highest) for value in log_probabilities]
    return [weight / sum(weights) for weight in weights]
