"""The results of all videos as one list of moments, ranked over all of them."""

from collections.abc import Sequence

from calce_jax.search.moment import ranked_moments
from calce_jax.search.moment_list import MomentList
from calce_jax.search.results import break_ties_across_videos, drop_absent, drop_below
from calce_jax.search.video_result import VideoResult


def merge_results(
    results: Sequence[VideoResult],
    queries: Sequence[str],
    max_moments: int,
    min_score: int | float | None = None,
    threshold: float = 0.0,
) -> MomentList:
    """Return the best moments of each query over all videos, with distinct scores.

    Args:
      results: of the same queries for each video; may be empty.
      queries: the sentences, for a list without results.
      max_moments: of a query.
      min_score: moments with a lower score are left out.
      threshold: a query whose best moment in a video has a lower score is taken not to happen there, unless there is a
        `min_score`.
    """
    if min_score is None:
        results = drop_absent(results, threshold)
    results = break_ties_across_videos(results) if results else []
    if min_score is not None:
        results = drop_below(results, float(min_score))
    return MomentList(
        ranked_moments(results, max_moments) if results else [],
        queries=[result.query for result in results[0].query_results] if results else queries,
        results=results,
        min_score=min_score,
        threshold=threshold,
    )
