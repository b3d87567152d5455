"""Search by what is said: the captions of some videos, without a model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.speech_index import SpeechHit, SpeechIndex
from calce_jax.search.video_result import WORDS_STAGE, QueryResult, UsedCaption, VideoResult
from calce_jax.text.caption import Caption

WORDS_SUFFIX = " (in words)"


def search_words(
    captions: Mapping[Path, Sequence[Caption]], durations: Mapping[Path, float], queries: Sequence[str], top: int
) -> list[VideoResult]:
    """Return where words of the queries are said, in the form of a search by a model, with the one stage "words".

    Args:
      captions: of each video, as read.
      durations: of the same videos, seconds.
      queries: words; those in double quotes must be said one after the other.
      top: maximum number of moments of a query in each video.
    """
    videos = list(captions)
    with SpeechIndex() as index:
        for number, video in enumerate(videos):
            index.add(str(number), captions[video])
        # The index ranks over all videos, a result has the best of each.
        hits = [index.search(query, top * len(captions)) for query in queries]
    numbers = {video: str(number) for number, video in enumerate(videos)}
    return [
        words_result(
            video,
            durations[video],
            {
                query: [hit for hit in found if str(hit.video) == numbers[video]][:top]
                for query, found in zip(queries, hits, strict=True)
            },
        )
        for video in captions
    ]


def words_result(video: Path, duration: float, hits: Mapping[str, Sequence[SpeechHit]]) -> VideoResult:
    """Return the hits in a video of `duration` seconds, by query, as the result of a search by a model."""
    return VideoResult(
        video, duration, [_query_result(query.strip(), found, duration) for query, found in hits.items()]
    )


def add_words(pictures: Sequence[VideoResult], words: Sequence[VideoResult]) -> list[VideoResult]:
    """Return the results of both, for the same videos; a query of the words has `words_suffix` behind it."""
    queries = {found.query for result in pictures for found in result.query_results}
    suffix = words_suffix(queries)
    words_by_video = {result.video: result for result in words}
    return [
        replace(
            result,
            query_results=[
                *result.query_results,
                *(replace(found, query=found.query + suffix) for found in words_by_video[result.video].query_results),
            ],
        )
        for result in pictures
    ]


def words_suffix(queries: Collection[str]) -> str:
    """Return `WORDS_SUFFIX`, or "(in words, 2)" and so on where a query would then read like another one."""
    suffixes = (WORDS_SUFFIX if number == 1 else f" (in words, {number})" for number in count(1))
    return next(suffix for suffix in suffixes if not any(query + suffix in queries for query in queries))


def _query_result(query: str, hits: Sequence[SpeechHit], duration: float) -> QueryResult:
    # Captions may end after the video.
    hits = [hit for hit in hits if hit.start < duration]
    windows = [ScoredWindow(hit.start, min(hit.end, duration), hit.score) for hit in hits]
    captions = [UsedCaption(hit.start, hit.end, hit.text, round(hit.score, 3)) for hit in hits]
    return QueryResult(query, {WORDS_STAGE: windows}, sorted(captions, key=lambda c: c.start), [], [])
