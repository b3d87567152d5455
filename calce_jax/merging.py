"""From stage 1 to stage 2: annotation rows that also hold the windows stage 1 found."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calce_jax.annotations import Annotation
from calce_jax.outputs import write_output
from calce_jax.predictions import Prediction, same_query


@dataclasses.dataclass(frozen=True)
class Merged:
    """What stage 2 reads.

    Attributes:
      rows: one JSON object an annotated query, in the annotations' order.
      without_result: ids of queries that stage 1 has no window for; their window is the whole video.
      unknown: ids of predictions for queries that are not annotated; they are left out.
    """

    rows: list[dict[str, Any]]
    without_result: list[str | int]
    unknown: list[str | int]


def merge(annotations: Sequence[Annotation], predictions: Sequence[Prediction]) -> Merged:
    """Put stage 1's windows into the annotations as "stage1_windows": in order of time, without scores, in seconds.

    They become words of stage 2's prompt, so whole seconds are written as whole numbers, as the model writes them.
    """
    found = {same_query(prediction.qid): prediction.windows for prediction in predictions}
    annotated = {same_query(annotation.qid) for annotation in annotations}
    rows, without_result = [], []
    for annotation in annotations:
        windows = sorted(window[:2] for window in found.get(same_query(annotation.qid), []))
        if not windows:
            without_result.append(annotation.qid)
            windows = [[0, annotation.duration]]
        rows.append(_row(annotation, [[_whole(second) for second in window] for window in windows]))
    unknown = [prediction.qid for prediction in predictions if same_query(prediction.qid) not in annotated]
    return Merged(rows, without_result, unknown)


def write_merged(path: str | Path, merged: Merged) -> None:
    """Write the rows as JSON lines.

    Raises:
      OSError: the file cannot be written.
    """
    write_output(path, "".join(json.dumps(row) + "\n" for row in merged.rows))


def _whole(second: int | float) -> int | float:
    return int(second) if second == int(second) else second


def _row(annotation: Annotation, stage1_windows: list[list[int | float]]) -> dict[str, Any]:
    row = {
        "qid": annotation.qid,
        "query": annotation.query,
        "vid": annotation.video,
        "duration": annotation.duration,
        "items": annotation.items,
        "kind": annotation.kind,
        "relevant_windows": annotation.windows,
        "stage1_windows": stage1_windows,
    }
    return {field: value for field, value in row.items() if value is not None}
