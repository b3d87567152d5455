"""Search a library by a model: the segments that are worth it are asked about, see `Library.choose_segments`."""

from collections.abc import Sequence
from dataclasses import dataclass

from calce_jax.search.inputs import check_queries
from calce_jax.search.library import Library
from calce_jax.search.paths import SearchError
from calce_jax.search.picture_ranker import PictureRanker
from calce_jax.search.results import break_ties_across_videos, keep_best
from calce_jax.search.searcher import Searcher
from calce_jax.search.video_result import WORDS_STAGE, QueryResult, VideoResult
from calce_jax.search.words import add_words
from calce_jax.storage.failures import Failure

CANDIDATES = 100  # segments that are asked about; docs/benchmarks.md has what fewer cost


@dataclass(frozen=True)
class LibraryResult:
    """What a search of a library found.

    Attributes:
      results: the videos with one of the best moments of a query; their scores are distinct.
      failures: videos that could not be read.
      num_videos: videos that have been ranked.
      num_unranked: videos of the library without vectors of this model.
    """

    results: list[VideoResult]
    failures: list[Failure]
    num_videos: int
    num_unranked: int


def search_library(
    library: Library,
    searcher: Searcher,
    ranker: PictureRanker,
    queries: Sequence[str],
    *,
    top: int,
    candidates: int = CANDIDATES,
) -> LibraryResult:
    """Return the best moments of each query in the videos of a library.

    Args:
      library: `Library.index_pictures` has added the vectors of this ranker.
      searcher: has the models of both stages.
      ranker: of the same models.
      queries: sentences.
      top: maximum number of moments of a query.
      candidates: maximum number of segments that a query asks the models about.

    Raises:
      SearchError: a query is refused, no video has vectors of this ranker, or none of those chosen can be read.
      LibraryError: the library is damaged.
    """
    check_queries(queries)
    library.check_any_unchanged(library.videos())
    num_videos = library.num_with_pictures(ranker.key)
    if not num_videos:
        raise SearchError(
            f"{library.path}: this model has not looked at its videos",
            "run `calce index --picture` on their folders, with the same --checkpoint",
        )
    chosen = library.choose_segments(queries, ranker.embed_queries(queries), ranker.key, candidates)
    found, failures = searcher.search_segments(chosen, queries, max_moments=top)
    if failures and not found:
        raise SearchError(f"{failures[0].video}: {failures[0].reason}", failures[0].remedy)
    return LibraryResult(
        keep_best(break_ties_across_videos(found), top) if found else [],
        failures,
        num_videos,
        len(library.videos()) - num_videos,
    )


def add_library_words(
    pictures: Sequence[VideoResult], words: Sequence[VideoResult], queries: Sequence[str]
) -> list[VideoResult]:
    """Return the results of the model and those of the words, for the videos that either has found.

    Args:
      pictures: of `search_library`.
      words: of `Library.search`.
      queries: of both.
    """
    by_picture, by_word = ({result.video: result for result in results} for results in (pictures, words))
    stages = list(pictures[0].query_results[0].stages) if pictures else ["stage 2"]

    def or_nothing(found: VideoResult | None, other: VideoResult, stages: Sequence[str]) -> VideoResult:
        if found is not None:
            return found
        nothing = [QueryResult(query.strip(), {name: [] for name in stages}, [], [], []) for query in queries]
        return VideoResult(other.video, other.duration, nothing)

    videos = dict.fromkeys([*by_picture, *by_word])
    some = {video: by_picture.get(video) or by_word[video] for video in videos}
    return add_words(
        [or_nothing(by_picture.get(video), some[video], stages) for video in videos],
        [or_nothing(by_word.get(video), some[video], [WORDS_STAGE]) for video in videos],
    )
