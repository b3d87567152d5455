"""Vectors of the segments of many videos, in a table of an SQLite file.

Dimensions: N queries, V vectors of a segment, D width of a vector.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import nlargest

import numpy as np
from jaxtyping import Float

from calce_jax.search.segments import Segment

SCHEMA = """
    CREATE TABLE IF NOT EXISTS segments (
        content TEXT NOT NULL, ranker TEXT NOT NULL, start REAL NOT NULL, "end" REAL NOT NULL, width INTEGER NOT NULL,
        vectors BLOB NOT NULL, PRIMARY KEY (content, ranker, start)
    );
"""
SEGMENTS_PER_BLOCK = 512  # 5 MB
VECTOR_DTYPE = np.dtype("<f2")


@dataclass(frozen=True)
class SegmentVectors:
    """The vectors of a segment, float16 (V, D)."""

    segment: Segment
    vectors: np.ndarray


@dataclass(frozen=True)
class SegmentScore:
    """The score of a segment for a query, a cosine.

    Attributes:
      content: hash of the video.
      start, end: of the segment, in seconds.
      score: in [-1, 1].
    """

    content: str
    start: float
    end: float
    score: float


def add_segments(database: sqlite3.Connection, content: str, ranker: str, segments: Iterable[SegmentVectors]) -> None:
    """Add the segments of a video in place of those it has, all or none.

    Args:
      database: with `SCHEMA`.
      content: hash of the video.
      ranker: `calce_jax.search.picture_ranker.PictureRanker.key`.
      segments: are read before anything is written.
    """
    rows = [
        (
            content,
            ranker,
            float(part.segment.start),
            float(part.segment.end),
            part.vectors.shape[1],
            part.vectors.astype(VECTOR_DTYPE).tobytes(),
        )
        for part in segments
    ]
    with database:
        database.execute("DELETE FROM segments WHERE content = ? AND ranker = ?", (content, ranker))
        database.executemany("INSERT INTO segments VALUES (?, ?, ?, ?, ?, ?)", rows)


def contents(database: sqlite3.Connection, ranker: str) -> set[str]:
    """Return the videos that have segments of a ranker."""
    return {content for (content,) in database.execute("SELECT content FROM segments WHERE ranker = ?", (ranker,))}


def segment_times(database: sqlite3.Connection, content: str, ranker: str) -> list[tuple[float, float]]:
    """Return start and end of the segments of a video, in seconds, in order."""
    return database.execute(
        'SELECT start, "end" FROM segments WHERE content = ? AND ranker = ? ORDER BY start', (content, ranker)
    ).fetchall()


def best_segments(
    database: sqlite3.Connection, ranker: str, queries: Float[np.ndarray, "N D"], count: int
) -> list[list[SegmentScore]]:
    """Return the best segments of each query, best first; of equal ones the first in order of content and time.

    The vectors are read in blocks, so memory does not grow with their number.

    Raises:
      ValueError: a row has vectors of another width, or cut ones.
    """
    best: list[list[SegmentScore]] = [[] for _ in queries]
    cursor = database.execute(
        'SELECT content, start, "end", width, vectors FROM segments WHERE ranker = ? ORDER BY content, start', (ranker,)
    )
    while block := cursor.fetchmany(SEGMENTS_PER_BLOCK):
        scores = _block_scores([(width, vectors) for *_, width, vectors in block], queries)
        for number, of_query in enumerate(scores):
            found = [
                SegmentScore(content, start, end, score)
                for (content, start, end, *_), score in zip(block, of_query.tolist(), strict=True)
            ]
            best[number] = nlargest(count, [*best[number], *found], key=lambda segment: segment.score)
    return best


def _block_scores(
    rows: Sequence[tuple[int, bytes]], queries: Float[np.ndarray, "N D"]
) -> Float[np.ndarray, "N segments"]:
    """Return the highest cosine of each segment's vectors with each query."""
    if any(width != queries.shape[1] or not vectors for width, vectors in rows):
        raise ValueError(f"a segment's vectors are not of width {queries.shape[1]}")
    parts = [np.frombuffer(vectors, VECTOR_DTYPE).reshape(-1, width) for width, vectors in rows]
    cosines = queries @ np.concatenate(parts).astype(np.float32).T
    firsts = np.cumsum([0, *map(len, parts)][:-1])
    return np.maximum.reduceat(cosines, firsts, axis=1)
