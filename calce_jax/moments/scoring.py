"""From the answers of a beam search to scored, ranked moments of one query."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from calce_jax.config import Behaviour
from calce_jax.moments.windows import (
    ParseStatus,
    Seconds,
    Window,
    WindowOrder,
    iou_matrix,
    order_windows,
    parse_windows,
)


@dataclasses.dataclass(frozen=True)
class BeamHypothesis:
    """One of the answers that were considered: its windows, and its probability among them all (they sum to 1)."""

    windows: list[Window]
    probability: float


@dataclasses.dataclass(frozen=True)
class QueryMoments:
    """What the model answers to one query.

    Attributes:
      windows: [start, end, score], best first; seconds of the video, scores in [0, 1].
      text: the answer the windows were read from.
      status: how well it could be read.
      hypotheses: all answers that were considered, most probable first.
    """

    windows: list[list[float]]
    text: str
    status: ParseStatus
    hypotheses: list[BeamHypothesis] = dataclasses.field(default_factory=list)


def score_moments(
    texts: Sequence[str],
    log_probabilities: Sequence[float],
    duration: Seconds,
    *,
    window_order: WindowOrder,
    behaviour: Behaviour = "default",
) -> QueryMoments:
    """Read the best answer, score its windows by all answers, and rank them.

    A window's score is the support it has: the probability-weighted mean over the beams of its overlap (IoU) with the
    nearest window of each, so 1 means that every answer the model considers has this very window.

    Args:
      texts: the answers, best first, at least one.
      log_probabilities: of each answer, natural logarithm.
      duration: of the video, in seconds.
      window_order: the order of the windows.
      behaviour: by default the best answer that can be read is used, and the status says "repaired" if it was not the
        first; "reference" reads the first whatever it says, and keeps the order of time.
    """
    parsed = [parse_windows(text, duration) for text in texts]
    best = next((i for i, each in enumerate(parsed) if each.windows), 0)
    text, windows, status = texts[best], parsed[best].windows, parsed[best].status
    if behaviour == "reference":
        text, reference_answer = texts[0], parse_windows(texts[0], duration, behaviour="reference")
        windows, status = reference_answer.windows, reference_answer.status
    elif best > 0:
        status = "repaired"
    hypotheses = [
        BeamHypothesis(each.windows, share)
        for each, share in zip(parsed, _normalise_probabilities(log_probabilities), strict=True)
    ]
    expected_ious = expected_iou(np.array(windows, np.float64).reshape(-1, 2), hypotheses)
    scores = [round(overlap, 4) for overlap in expected_ious.tolist()]
    order = order_windows(windows, scores, window_order="given" if behaviour == "reference" else window_order)
    return QueryMoments([[*map(float, windows[i]), scores[i]] for i in order], text, status, hypotheses)


def expected_iou(windows: Float[np.ndarray, "N 2"], hypotheses: Sequence[BeamHypothesis]) -> Float[np.ndarray, " N"]:
    """Return the mean over the beams, by probability, of each window's greatest overlap (IoU) with one of theirs."""
    total = np.zeros(len(windows))
    for hypothesis in hypotheses:
        if hypothesis.windows and len(windows):
            total += hypothesis.probability * iou_matrix(windows, np.array(hypothesis.windows, np.float64)).max(axis=1)
    return total


def _normalise_probabilities(log_probabilities: Sequence[float]) -> list[float]:
    max_log_probability = max(log_probabilities)
    weights = [math.exp(value - max_log_probability) for value in log_probabilities]
    return [weight / sum(weights) for weight in weights]
