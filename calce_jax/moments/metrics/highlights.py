"""QVHighlights' highlight metrics: how well a saliency of every two seconds agrees with three annotators.

A clip counts as salient for an annotator who rated it at least Fair, Good or VeryGood. mAP is the mean, over queries
and annotators, of the average precision of the clips ranked by predicted saliency; Hit1 the share of queries whose
clip of highest predicted saliency is salient for any annotator.

K clips of a video, P of them with a prediction, A annotators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from calce_jax.errors import UserError
from calce_jax.moments.metrics.protocols import to_percent
from calce_jax.moments.saliency import CLIP_SECONDS
from calce_jax.moments.windows import Seconds

# The lowest rating that counts, on the scale from 0 (very bad) to 4 (very good).
MIN_RATINGS = {"Fair": 2, "Good": 3, "VeryGood": 4}


class SaliencyError(UserError):
    """Saliency scores that cannot be scored; the message names the query, the field and the remedy."""


@dataclass(frozen=True)
class HighlightCase:
    """The clips of one query.

    Attributes:
      qid: the query's id.
      predicted: saliency of every clip of the video, any scale; empty where the query has no prediction.
      ratings: of every clip by every annotator; 0 outside the annotated clips.
    """

    qid: str | int
    predicted: Float[np.ndarray, " P"]
    ratings: Float[np.ndarray, "K A"]


def rate_clips(duration: Seconds, clip_ratings: Mapping[int, Sequence[int | float]]) -> Float[np.ndarray, "K A"]:
    """Return the ratings of all clips of a video; those of clips that nobody rated are 0.

    Args:
      duration: of the video, in seconds.
      clip_ratings: the ratings of a clip by every annotator, by its number.

    Raises:
      SaliencyError: a clip is beyond the video.
    """
    num_clips = int(duration / CLIP_SECONDS)
    beyond = [clip for clip in clip_ratings if not 0 <= clip < num_clips]
    if beyond:
        raise SaliencyError(
            f"relevant_clip_ids: {beyond[0]} is not one of the {num_clips} clips of a video of {duration:g} s",
            "fix the clip or the duration",
        )
    table = np.zeros((num_clips, len(next(iter(clip_ratings.values()), [0]))))
    table[list(clip_ratings)] = list(clip_ratings.values())
    return table


def highlight_scores(cases: Sequence[HighlightCase]) -> dict[str, dict[str, float]]:
    """Return {"Fair": {"mAP": ..., "Hit1": ...}, "Good": ..., "VeryGood": ...}, in percent.

    A prediction may have one clip less than its video, as the official ones have; a query without one is a miss.

    Args:
      cases: the queries, at least one.

    Raises:
      SaliencyError: a prediction has another number of clips than its video.
    """
    for case in cases:
        if len(case.predicted) and not 0 <= len(case.ratings) - len(case.predicted) <= 1:
            raise SaliencyError(
                f"query {case.qid}, pred_saliency_scores: {len(case.predicted)} scores, for a video of "
                f"{len(case.ratings)} clips of {CLIP_SECONDS:g} s",
                "give one score for each clip",
            )
    return {
        name: {
            "mAP": to_percent(float(np.mean([_mean_precision(case, rating) for case in cases]))),
            "Hit1": to_percent(float(np.mean([_best_is_salient(case, rating) for case in cases]))),
        }
        for name, rating in MIN_RATINGS.items()
    }


def _best_is_salient(case: HighlightCase, min_rating: int) -> bool:
    return bool(len(case.predicted)) and bool((case.ratings[np.argmax(case.predicted)] >= min_rating).any())


def _mean_precision(case: HighlightCase, min_rating: int) -> float:
    """Return the average precision of a query, averaged over the annotators."""
    if not len(case.predicted):
        return 0.0
    return float(ranked_precision(case.ratings[: len(case.predicted)] >= min_rating, case.predicted).mean())


def ranked_precision(is_salient: Bool[np.ndarray, "P A"], saliency: Float[np.ndarray, " P"]) -> Float[np.ndarray, " A"]:
    """Return each annotator's average precision of clips ranked by saliency, 0 to 1; 0 if none is salient.

    Precision at a recall is the highest at this recall or a higher one; clips of equal saliency share a rank. The mean
    is over the ranks that raise the recall, as in the official scorer.
    """
    order = np.argsort(-saliency, kind="stable")
    last_of_rank = np.append(np.flatnonzero(np.diff(saliency[order])), len(order) - 1)
    found = np.cumsum(is_salient[order], axis=0)[last_of_rank]
    precision = found / (last_of_rank[:, None] + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    raises_recall = np.diff(found, axis=0, prepend=0) > 0
    return (precision * raises_recall).sum(axis=0) / np.maximum(raises_recall.sum(axis=0), 1)


def format_highlights(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the scores as aligned text, a row for each lowest rating."""
    rows = [f"{f'at least {name}':<20}{row['mAP']:10.2f}{row['Hit1']:10.2f}" for name, row in scores.items()]
    return "\n".join([f"{'highlights':<20}{'mAP':>10}{'Hit1':>10}", *rows])
