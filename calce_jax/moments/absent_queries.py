"""Queries that do not happen in their video, in the forms in which sets of them are published.

own                 "relevant_windows": []
Moment of Untruth   rows of QVHighlights' format for QVHighlights and Charades-STA: "relevant_windows": [[0, 0]] and
                    "relevant_clip_ids": []; an absent query may have the id of a present one
RA-RFT              a JSON list of videos: "video" (a path), "timestamp": [0.0, 6.9], and under "GRPO" or "QA" its
                    queries, {"q": "a man runs", "r": true}; r says whether the query happens, at the timestamp
"""

from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from calce_jax.moments.json_rows import normalise_qid

ABSENT_SUFFIX = "_absent"
_QUERY_LISTS = ("GRPO", "QA")


def read_absent_queries(rows: Sequence[tuple[str, Any]], stem: str, faults: list[str]) -> Iterator[tuple[str, Any]]:
    """Yield location and row of every query, absent ones with no windows, in the fields of QVHighlights' release.

    Args:
      rows: (location, parsed JSON value), of any format.
      stem: of the file's name; queries of RA-RFT are numbered with it, since they have no ids.
      faults: gets a line for every video of RA-RFT that cannot be used.
    """
    present = {_id(row) for _, row in rows if isinstance(row, dict) and not _is_marked_absent(row)}
    number = 0
    for location, row in rows:
        if not isinstance(row, dict):
            yield location, row
        elif name := next((name for name in _QUERY_LISTS if name in row), None):
            try:
                queries = list(_rows_of_video(row, name))
            except ValueError as error:
                faults.append(f"{location}, {error}")
                continue
            for query in queries:
                number += 1
                yield f"{location}, query {number}", {"qid": f"{stem}_{number}", **query}
        elif _is_marked_absent(row):
            qid = {"qid": f"{_id(row)}{ABSENT_SUFFIX}"} if _id(row) in present else {}
            unrated = {"relevant_windows": [], "relevant_clip_ids": None, "saliency_scores": None}
            yield location, row | unrated | qid
        else:
            yield location, row


def _id(row: dict[str, Any]) -> str:
    """Return the id of a row in the form in which ids are compared."""
    return normalise_qid(str(row.get("qid")))


def _is_marked_absent(row: dict[str, Any]) -> bool:
    """Whether a row of Moment of Untruth says that its query does not happen."""
    return row.get("relevant_windows") == [[0, 0]] and row.get("relevant_clip_ids") == []


def _rows_of_video(video: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """Yield a row without id for each query of a video of RA-RFT.

    Raises:
      ValueError: "FIELD: what is wrong; remedy".
    """
    queries, path = video[name], video.get("video")
    if not isinstance(path, str) or not path:
        raise ValueError(f"video: expected the path of the video, got {path!r:.60}; fix the video")
    if not isinstance(queries, list):
        raise ValueError(f"{name}: expected a list of queries, got {queries!r:.60}; fix the video")
    for query in queries:
        if not isinstance(query, dict) or not isinstance(query.get("r"), bool) or "q" not in query:
            raise ValueError(
                f'{name}: expected {{"q": sentence, "r": whether it happens}}, got {query!r:.60}; fix or drop the query'
            )
        yield {
            "vid": PurePosixPath(path).stem,
            "query": query["q"],
            "duration": video.get("duration"),
            "relevant_windows": [video.get("timestamp")] if query["r"] else [],
        }
