"""From the answers of a beam search to the scored, ordered windows of one query."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from calce_jax.config import Behaviour
from calce_jax.moments.minimum_bayes_risk import least_risk
from calce_jax.moments.windows import (
    Decision,
    ParseStatus,
    Seconds,
    Window,
    WindowOrder,
    WindowSource,
    falling_scores,
    iou_matrix,
    order_windows,
    parse_windows,
)


@dataclasses.dataclass(frozen=True)
class BeamHypothesis:
    """One beam.

    Attributes:
      windows: of its answer; none where it says so, and where it cannot be read.
      probability: normalised over all beams.
      is_answer: whether it can be read.
    """

    windows: list[Window]
    probability: float
    is_answer: bool = True


@dataclasses.dataclass(frozen=True)
class QueryMoments:
    """The predicted windows of one query.

    Attributes:
      windows: [start, end, score], best first; seconds of the video, scores in [0, 1] that fall along the list.
      text: the answer from which the windows were parsed.
      status: how well it could be parsed.
      hypotheses: all beams, most probable first.
      support: expected IoU of each window, in [0, 1], in the order of `windows`; where it does not rise along the list
        it is the score.
      other_windows: [start, end, score] of the windows that only other beams have, by support, which is their score;
        the list goes on from `windows`, with scores below. Empty unless asked for.
      other_support: expected IoU of each of these.
      is_absent: the answer is "[]": the query does not happen.
      presence: where `is_absent`, the support of the best window of the other beams, in [0, 1]; 0 if they have none.
    """

    windows: list[list[float]]
    text: str
    status: ParseStatus
    hypotheses: list[BeamHypothesis] = dataclasses.field(default_factory=list)
    support: list[float] = dataclasses.field(default_factory=list)
    other_windows: list[list[float]] = dataclasses.field(default_factory=list)
    other_support: list[float] = dataclasses.field(default_factory=list)
    is_absent: bool = False
    presence: float | None = None


def score_moments(
    texts: Sequence[str],
    log_probabilities: Sequence[float],
    duration: Seconds,
    *,
    window_order: WindowOrder,
    window_source: WindowSource = "best_beam",
    decision: Decision = "most_probable",
    meant_seconds: Mapping[int, int] | None = None,
    behaviour: Behaviour = "default",
) -> QueryMoments:
    """Parse the best answer, score its windows by all answers, and order them.

    A window's support is its expected IoU: the mean over the beams, weighted by probability, of its largest IoU with a
    window of the beam. It is 1 where every beam has this window. Its score is the same, but less than that of the
    window before it: a protocol that sorts by score must not undo the order.

    Args:
      texts: the answers, best first, at least one.
      log_probabilities: of each answer, natural logarithm.
      duration: of the video, in seconds.
      window_order: the order of the windows of the answer.
      window_source: "all_beams" lists the windows of the other beams after those of the answer.
      decision: which of the answers that can be read is given, see `calce_jax.moments.minimum_bayes_risk`.
      meant_seconds: see `parse_windows`.
      behaviour: by default answers that cannot be read, without a window and not "[]", are passed over, and the status
        is "repaired" if the best was; "reference" always uses the best answer alone, and orders its windows by time.
    """
    parsed = [parse_windows(text, duration, meant_seconds=meant_seconds) for text in texts]
    probabilities = _normalise_probabilities(log_probabilities)
    readable = [i for i, answer in enumerate(parsed) if answer.is_answer] or [0]
    best = readable[0]
    if decision == "minimum_bayes_risk":
        best = readable[least_risk([parsed[i].windows for i in readable], [probabilities[i] for i in readable])]
    text, windows, status = texts[best], parsed[best].windows, parsed[best].status
    is_absent = parsed[best].is_answer and not windows
    if behaviour == "reference":
        text, reference_answer = texts[0], parse_windows(texts[0], duration, behaviour="reference")
        windows, status, is_absent = reference_answer.windows, reference_answer.status, False
        window_order, window_source = "given", "best_beam"
    elif readable[0] > 0:
        status = "repaired"
    hypotheses = [
        BeamHypothesis(answer.windows, probability, answer.is_answer)
        for answer, probability in zip(parsed, probabilities, strict=True)
    ]
    return rank_moments(
        windows,
        hypotheses,
        text=text,
        status=status,
        is_absent=is_absent,
        window_order=window_order,
        window_source=window_source,
    )


def rank_moments(
    windows: Sequence[Window],
    hypotheses: Sequence[BeamHypothesis],
    *,
    text: str,
    status: ParseStatus,
    is_absent: bool,
    window_order: WindowOrder,
    window_source: WindowSource,
) -> QueryMoments:
    """Score the windows of an answer by all answers, and order them.

    Args:
      windows: of the answer.
      hypotheses: all answers.
      text, status, is_absent: of the answer, see `QueryMoments`.
      window_order, window_source: as for `score_moments`.
    """
    others = _other_windows(windows, hypotheses)
    lists_all = window_source == "all_beams" and not is_absent
    ranked, support = _rank_windows([windows, others if lists_all else []], [window_order, "score"], hypotheses)
    count = len(windows)
    presence = None
    if is_absent:
        presence = round(max(expected_iou(np.array(others, np.float64).reshape(-1, 2), hypotheses), default=0.0), 4)
    return QueryMoments(
        ranked[:count],
        text,
        status,
        list(hypotheses),
        support[:count],
        other_windows=ranked[count:],
        other_support=support[count:],
        is_absent=is_absent,
        presence=presence if presence is None else float(presence),
    )


def _other_windows(windows: Sequence[Window], hypotheses: Sequence[BeamHypothesis]) -> list[Window]:
    """Return the windows of the hypotheses that are not among `windows`, each once, those of probable beams first."""
    others: list[Window] = []
    for hypothesis in hypotheses:
        others += [window for window in hypothesis.windows if window not in windows and window not in others]
    return others


def _rank_windows(
    groups: Sequence[Sequence[Window]], orders: Sequence[WindowOrder], hypotheses: Sequence[BeamHypothesis]
) -> tuple[list[list[float]], list[float]]:
    """Return the windows of each group in its order, the groups one after the other, and the support of each window.

    The scores fall along the whole list.
    """
    ranked: list[Window] = []
    support: list[float] = []
    for windows, window_order in zip(groups, orders, strict=True):
        expected_ious = expected_iou(np.array(windows, np.float64).reshape(-1, 2), hypotheses)
        of_group = [round(score, 4) for score in expected_ious.tolist()]
        order = order_windows(windows, of_group, window_order)
        ranked += [windows[i] for i in order]
        support += [of_group[i] for i in order]
    scores = falling_scores(support)
    return [[*map(float, window), score] for window, score in zip(ranked, scores, strict=True)], support


def expected_iou(windows: Float[np.ndarray, "N 2"], hypotheses: Sequence[BeamHypothesis]) -> Float[np.ndarray, " N"]:
    """Return each window's largest IoU with a window of a beam, averaged over the beams by probability."""
    total = np.zeros(len(windows))
    for hypothesis in hypotheses:
        if hypothesis.windows and len(windows):
            total += hypothesis.probability * iou_matrix(windows, np.array(hypothesis.windows, np.float64)).max(axis=1)
    return total


def _normalise_probabilities(log_probabilities: Sequence[float]) -> list[float]:
    max_log_probability = max(log_probabilities)
    weights = [math.exp(value - max_log_probability) for value in log_probabilities]
    return [weight / sum(weights) for weight in weights]
