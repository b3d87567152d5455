"""Two answers to a query, about a video and about a part of it, made into one."""

import json

from calce_jax.moments.minimum_bayes_risk import least_risk
from calce_jax.moments.predictions import Prediction
from calce_jax.moments.scoring import BeamHypothesis, QueryMoments, rank_moments
from calce_jax.moments.windows import Seconds, WindowOrder, WindowSource

# Seconds; a duration of hours in float32 is not further from its value.
ROUNDING = 1e-3


def pool_looks(
    first: Prediction,
    second: Prediction,
    start: Seconds,
    *,
    window_order: WindowOrder,
    window_source: WindowSource,
) -> QueryMoments:
    """Return the answer that agrees best with the beams of both, each of which has half of the weight.

    Args:
      first: about the video, with beams.
      second: about a part of it, with beams.
      start: of the part, seconds.
      window_order, window_source: see `calce_jax.moments.scoring.score_moments`.

    Raises:
      ValueError: a prediction without beams, or the first without the duration of the video.
    """
    if first.duration is None:
        raise ValueError(f"first: the prediction for query {first.qid} has no duration")
    hypotheses = sorted(
        [*_half(first, 0, first.duration), *_half(second, start, first.duration)],
        key=lambda hypothesis: hypothesis.probability,
        reverse=True,
    )
    windows: list[list[Seconds]] = []
    if hypotheses:
        chosen = least_risk(
            [hypothesis.windows for hypothesis in hypotheses], [hypothesis.probability for hypothesis in hypotheses]
        )
        windows = hypotheses[chosen].windows
    return rank_moments(
        windows,
        hypotheses,
        text=json.dumps(windows),
        status=first.status or "exact",
        is_absent=bool(hypotheses) and not windows,
        window_order=window_order,
        window_source=window_source,
    )


def _half(look: Prediction, start: Seconds, duration: Seconds) -> list[BeamHypothesis]:
    """Return the beams of a look in seconds of the video; their probabilities are a half together, or all 0."""
    if look.beams is None:
        raise ValueError(f"a prediction for query {look.qid} was made without beams")
    total = 2 * sum(probability for probability, _ in look.beams) or 1.0
    return [
        BeamHypothesis(
            [[_in_video(first, start, duration), _in_video(last, start, duration)] for first, last in windows],
            probability / total,
        )
        for probability, windows in look.beams
    ]


def _in_video(second: Seconds, start: Seconds, duration: Seconds) -> Seconds:
    """Return a second of a part as one of the video; its end is the same number in both looks, not nearly so."""
    moved = second + start
    return duration if moved > duration - ROUNDING else moved
