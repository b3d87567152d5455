"""Annotations of one query a line of text: Charades-STA's release, and the lines of TimeLens-Bench."""

import json
from typing import Any

SEPARATOR = ">>>"


def parse_separated_line(line: str, qid: str) -> dict[str, Any]:
    """Return a row, in the fields of QVHighlights' release, from "VIDEO>>>sentence>>>[START, END]", or several windows.

    Raises:
      ValueError: the line is no such line; the message says what was expected.
    """
    video, *middle, span = line.split(SEPARATOR)
    try:
        windows = json.loads(span)
    except (ValueError, RecursionError):
        windows = None
    if not middle or not isinstance(windows, list):
        raise ValueError(f'expected "VIDEO>>>sentence>>>[START, END]", got {line!r:.60}; fix or drop the line')
    is_nested = bool(windows) and isinstance(windows[0], list)
    return {
        "qid": qid,
        "video": video.strip(),
        "query": SEPARATOR.join(middle).strip(),
        "duration": None,
        "relevant_windows": windows if is_nested or not windows else [windows],
    }


def parse_charades_line(line: str, qid: str) -> dict[str, Any]:
    """Return a row, in the fields of QVHighlights' release, from "VIDEO START END##sentence".

    Raises:
      ValueError: the line is no such line; the message says what was expected.
    """
    timing, separator, query = line.partition("##")
    words = timing.split()
    try:
        video, start, end = words
        window = [float(start), float(end)]
    except ValueError:
        window = video = None
    if window is None or not separator or not query.strip():
        raise ValueError(
            f'expected "VIDEO START END##sentence" or a JSON object, got {line!r:.60}; fix or drop the line'
        )
    return {"qid": qid, "video": video, "query": query.strip(), "duration": None, "relevant_windows": [window]}
