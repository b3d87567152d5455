"""Two answers to a query, about a video and about a part of it, made into one."""

import json

from calce_jax.moments.minimum_bayes_risk import least_risk
from calce_jax.moments.predictions import Prediction
from calce_jax.moments.scoring import BeamHypothesis, QueryMoments, rank_moments
from calce_jax.moments.windows import Seconds, WindowOrder, WindowSource


def pool_looks(
    first: Prediction,
    second: Prediction,
    start: int,
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
      ValueError: a prediction without beams.
    """
    hypotheses = sorted(
        [*_half(first, 0), *_half(second, start)], key=lambda hypothesis: hypothesis.probability, reverse=True
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


def _half(look: Prediction, start: int) -> list[BeamHypothesis]:
    """Return the beams of a look in seconds of the video; their probabilities are a half together, or all 0."""
    if look.beams is None:
        raise ValueError(f"a prediction for query {look.qid} was made without beams")
    total = 2 * sum(probability for probability, _ in look.beams) or 1.0
    # Whole seconds are subtracted and added exactly: the end of the video is the same number in both looks.
    return [
        BeamHypothesis([[first + start, last + start] for first, last in windows], probability / total)
        for probability, windows in look.beams
    ]
