"""The queries of a split, to find those that do not happen in a video.

Annotations say what happens in a video, seldom all of it. Where they do, in facts, a query happens if its fact is one
of the video's. Elsewhere it may happen if it shares a content word with a query or a caption of the video. What happens
without being annotated or said, or in other words, is not noticed.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from calce_jax.input_pipeline.example import Query
from calce_jax.text.content_words import content_words

# Words of more than a quarter of the queries ("person" in Charades-STA) say little, and would leave no query absent; in
# a split of few queries every word may be so frequent.
COMMON_SHARE, MIN_COMMON = 0.25, 20


class VideoContent(NamedTuple):
    """What is known to happen in a video: content words, and facts (none if not all are known)."""

    words: frozenset[str]
    facts: frozenset[str]


class QueryPool:
    """The queries of a split, by their row in its table.

    Args:
      queries: of the split.
    """

    def __init__(self, queries: Iterable[Query]):
        self.queries = list(queries)
        words = [content_words(query.query) for query in self.queries]
        counts = Counter(word for of_query in words for word in of_query)
        max_count = max(COMMON_SHARE * len(words), MIN_COMMON)
        common = {word for word, count in counts.items() if count > max_count}
        self._words = [of_query - common for of_query in words]
        self._contents: dict[str, VideoContent] = {}
        for query, of_query in zip(self.queries, self._words, strict=True):
            known = self._contents.get(query.video, VideoContent(frozenset(), frozenset()))
            self._contents[query.video] = VideoContent(known.words | of_query, known.facts | set(query.facts))

    def content(self, video: str, captions: Sequence[tuple[float, float, str]] = ()) -> VideoContent:
        """Return what is known to happen in a video of the split.

        Args:
          video: its id.
          captions: of the video; start, end and text.
        """
        content = self._contents[video]
        return content._replace(words=content.words.union(*(content_words(text) for _, _, text in captions)))

    def may_hold(self, row: int, content: VideoContent) -> bool:
        """Return whether a query may happen in a video, also where nothing tells."""
        fact, words = self.queries[row].fact, self._words[row]
        if fact and content.facts:
            return fact in content.facts
        return not words or not words.isdisjoint(content.words)
