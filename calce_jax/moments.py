"""From the answers of a beam search to scored, ranked moments of one query."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from calce_jax.windows import RankBy, Seconds, Status, Window, iou_matrix, parse_windows, rank


@dataclasses.dataclass(frozen=True)
class Moments:
    """What the model answers to one query.

    Attributes:
      windows: [start, end, score], best first; seconds of the video, scores in [0, 1].
      text: the answer the windows were read from.
      status: how well it could be read.
    """

    windows: list[list[float]]
    text: str
    status: Status


def moments(
    texts: Sequence[str],
    log_probabilities: Sequence[float],
    duration: Seconds,
    *,
    by: RankBy,
    behaviour: Literal["default", "reference"] = "default",
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
    scores = support(windows, [each.windows for each in parsed], log_probabilities)
    order = rank(windows, scores, by="given" if behaviour == "reference" else by)
    return Moments([[*map(float, windows[i]), scores[i]] for i in order], text, status)


def support(
    windows: Sequence[Window], answers: Sequence[Sequence[Window]], log_probabilities: Sequence[float]
) -> list[float]:
    """Return the probability-weighted mean over `answers` of each window's greatest overlap with one of its windows."""
    highest = max(log_probabilities)
    weights = [math.exp(value - highest) for value in log_probabilities]
    total = np.zeros(len(windows))
    for answer, weight in zip(answers, weights, strict=True):
        if answer and windows:
            total += weight * iou_matrix(np.array(windows, np.float64), np.array(answer, np.float64)).max(axis=1)
    return [round(float(value), 4) for value in total / sum(weights)]
