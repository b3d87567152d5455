"""Predictions on disk: one JSON line a query, the official release's lines, the original's rows, and the submission."""

import dataclasses
import io
import json
import math
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from calce_jax.errors import UserError
from calce_jax.moments.windows import ParseStatus, Seconds, WindowOrder, order_windows
from calce_jax.storage.atomic_files import write_atomic

SubmissionSplit = Literal["val", "test"]
QVHIGHLIGHTS_PREFIX = "QVHighlight_"
_WINDOW_FIELD_NAMES = ("pred_relevant_windows", "stage1_result")
# A file can be wrong in every line; more than these help no one.
_MAX_SHOWN_ERRORS = 30


class PredictionError(UserError):
    """Predictions that cannot be used; the message names file, line, field and remedy, for all faults together."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What was answered to one query.

    Attributes:
      qid: the query's id: 2579 in the official release, "QVHighlight_2579" in the original's files.
      query: the sentence.
      video: the video's id ("vid" in files).
      windows: [start, end, score], best first; seconds ("pred_relevant_windows" in files). A window given without a
        score has 1.
      text: the model's answer the windows were read from ("raw" in files).
      status: how well the answer could be read.
      duration: of the video, in seconds.
    """

    qid: str | int
    query: str
    video: str
    windows: list[list[Seconds]]
    text: str | None = None
    status: ParseStatus | None = None
    duration: Seconds | None = None

    @property
    def malformed(self) -> bool:
        """Whether the answer could not be used as it stood; what is not known to be malformed is not."""
        return self.status not in (None, "exact")


def normalise_qid(qid: str | int) -> str:
    """Return the id by which files of both formats mean the same query: "QVHighlight_2579" and 2579 give "2579"."""
    return str(qid).removeprefix(QVHIGHLIGHTS_PREFIX)


def reorder_windows(prediction: Prediction, window_order: WindowOrder) -> Prediction:
    """Return the prediction with its windows in another order.

    Longest first takes new scores, falling from 1, because some protocols go by the scores and not by the order.
    """
    scores = [window[2] for window in prediction.windows]
    windows = [prediction.windows[i] for i in order_windows(prediction.windows, scores, window_order)]
    if window_order == "longest":
        windows = [[start, end, 1 - place / len(windows)] for place, (start, end, _) in enumerate(windows)]
    return dataclasses.replace(prediction, windows=windows)


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON line a query; optional fields that are not set are left out.

    Raises:
      OSError: the file cannot be written.
    """
    write_atomic(path, "".join(json.dumps(prediction_to_json(prediction)) + "\n" for prediction in predictions))


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """Return the JSON object of a prediction."""
    row = {
        "qid": prediction.qid,
        "query": prediction.query,
        "vid": prediction.video,
        "pred_relevant_windows": prediction.windows,
        "raw": prediction.text,
        "status": prediction.status,
        "duration": prediction.duration,
    }
    return {field: value for field, value in row.items() if value is not None}


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions of any of three formats, told apart by their content.

    One JSON line a query, as `write_predictions` and the official release write it; or the original's JSON list, whose
    rows hold the windows as "stage1_result" and the video as "video".

    Raises:
      FileNotFoundError: there is no such file.
      PredictionError: faults in it, all of them, with line and field; ids that repeat are one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of predictions; write one with launch/infer.py")
    faults: list[str] = []
    predictions: list[Prediction] = []
    locations_by_qid: dict[str, list[str]] = {}
    for location, row in _read_rows(path.read_text(encoding="utf-8"), faults):
        row_faults = list(_find_row_faults(row))
        faults += [f"{location}: {fault}" for fault in row_faults]
        if not row_faults:
            predictions.append(_prediction_from_json(row))
            locations_by_qid.setdefault(normalise_qid(row["qid"]), []).append(location)
    faults += [
        f"{', '.join(locations)}: qid: {qid} repeats; keep one of them"
        for qid, locations in locations_by_qid.items()
        if len(locations) > 1
    ]
    if faults:
        shown = [f"{path}, {fault}" for fault in faults[:_MAX_SHOWN_ERRORS]]
        more = [f"... and {len(faults) - len(shown)} more"] if len(faults) > len(shown) else []
        raise PredictionError("\n".join(shown + more))
    return predictions


def _read_rows(text: str, faults: list[str]) -> Iterable[tuple[str, Any]]:
    """Return each row with its place in the file; what is no JSON becomes a fault."""
    if text.lstrip().startswith("["):
        try:
            return [(f"row {number}", row) for number, row in enumerate(json.loads(text), 1)]
        except json.JSONDecodeError as error:
            faults.append(f"line {error.lineno}: not JSON ({error.msg}); write the file again")
            return []
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append((f"line {number}", json.loads(line)))
        except json.JSONDecodeError as error:
            faults.append(f"line {number}: not JSON ({error.msg}); give one object a line")
    return rows


def _find_row_faults(row: Any) -> Iterable[str]:
    if not isinstance(row, dict):
        yield f"expected an object with qid, query, vid and pred_relevant_windows, got {row!r:.60}"
        return
    if not isinstance(row.get("qid"), str | int) or isinstance(row.get("qid"), bool):
        yield f"qid: expected the query's id, got {row.get('qid')!r:.60}; copy it from the annotations"
    if not isinstance(row.get("query"), str):
        yield f"query: expected the sentence, got {row.get('query')!r:.60}; copy it from the annotations"
    if not isinstance(_video_id(row), str):
        yield f"vid: expected the video's id, got {_video_id(row)!r:.60}; copy it from the annotations"
    yield from _find_window_faults(row)
    if not isinstance(row.get("raw", ""), str):
        yield f"raw: expected the answer's text, got {row['raw']!r:.60}; leave the field out if there is none"
    if row.get("status") not in (None, *get_args(ParseStatus)):
        yield f"status: expected one of {', '.join(get_args(ParseStatus))}, got {row['status']!r:.60}"
    duration = row.get("duration")
    if duration is not None and not (_is_number(duration) and duration > 0):
        yield f"duration: expected positive seconds, got {duration!r:.60}; leave the field out if it is not known"


def _find_window_faults(row: dict[str, Any]) -> Iterable[str]:
    field = next((name for name in _WINDOW_FIELD_NAMES if name in row), None)
    if field is None:
        yield "pred_relevant_windows: missing; give [[start, end, score], ...], or [] for no moment"
        return
    if not isinstance(row[field], list):
        yield f"{field}: expected a list of [start, end, score], got {row[field]!r:.60}"
        return
    for window in row[field]:
        if not (isinstance(window, list) and len(window) in (2, 3) and all(map(_is_number, window))):
            yield f"{field}: expected [start, end] or [start, end, score] in numbers, got {window!r:.60}"
        elif not (0 <= window[0] <= window[1] or window[:2] == [-1, -1]):
            yield f"{field}: {window!r:.60} starts before the video or ends before it starts; give 0 <= start <= end"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _video_id(row: dict[str, Any]) -> Any:
    return row.get("vid", row.get("video"))


def _prediction_from_json(row: dict[str, Any]) -> Prediction:
    windows = row[next(name for name in _WINDOW_FIELD_NAMES if name in row)]
    windows = [[*window, 1.0][:3] for window in windows]
    return Prediction(
        row["qid"], row["query"], _video_id(row), windows, row.get("raw"), row.get("status"), row.get("duration")
    )


def write_submission(path: str | Path, predictions: Sequence[Prediction], split: SubmissionSplit) -> None:
    """Write the zip that the QVHighlights server takes: `hl_val_submission.jsonl`, `hl_test_submission.jsonl`.

    The server wants both splits in one file: a zip that already holds the other split keeps it. Ids become the
    release's whole numbers; a query without a moment gets a window without length, since the server needs one a query;
    saliency scores, which are optional, are left out.

    Args:
      path: the zip; it is written under another name first.
      predictions: one for every query of the split.
      split: which of the two they are.

    Raises:
      PredictionError: ids that are not those of QVHighlights.
      OSError: the file cannot be written.
    """
    foreign_qids = [
        prediction.qid for prediction in predictions if not re.fullmatch("[0-9]+", normalise_qid(prediction.qid))
    ]
    if foreign_qids:
        raise PredictionError(
            f"{path}: qid: {len(foreign_qids)} ids such as {foreign_qids[0]!r} are not of QVHighlights, whose ids are whole "
            "numbers",
            "submit predictions for its val or test split",
        )
    members = _read_members(Path(path))
    members[f"hl_{split}_submission.jsonl"] = "".join(
        json.dumps(
            {
                "qid": int(normalise_qid(prediction.qid)),
                "query": prediction.query,
                "vid": prediction.video,
                "pred_relevant_windows": [[float(number) for number in window] for window in prediction.windows]
                or [[0.0, 0.0, 0.0]],
            }
        )
        + "\n"
        for prediction in predictions
    ).encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted(members.items()):
            archive.writestr(name, content)
    write_atomic(path, buffer.getvalue())


def _read_members(path: Path) -> dict[str, bytes]:
    """Return what a submission holds so far."""
    if not path.exists():
        return {}
    if not zipfile.is_zipfile(path):
        raise PredictionError(f"{path}: not a zip", "choose another name for the submission, or remove the file")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
