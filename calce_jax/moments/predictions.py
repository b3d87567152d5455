"""Predictions on disk: our JSON lines, the official release's, the original's JSON list, and the submission zip."""

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from calce_jax.errors import UserError
from calce_jax.moments.json_rows import is_finite_number, normalise_qid, raise_faults, read_rows
from calce_jax.moments.windows import ParseStatus, Seconds, Window, WindowOrder, falling_scores, order_windows
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.text_files import read_text

SubmissionSplit = Literal["val", "test"]
_WINDOW_FIELD_NAMES = ("pred_relevant_windows", "stage1_result")


class PredictionError(UserError):
    """Predictions that cannot be used; the message names file, line, field and remedy, for all faults together."""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The predicted windows of one query.

    Attributes:
      qid: the query's id: 2579 in the official release, "QVHighlight_2579" in the original's files.
      query: the sentence.
      video: the video's id ("vid" in files).
      windows: [start, end, score], best first; seconds ("pred_relevant_windows" in files). A window given without a
        score has 1.
      text: the model's answer, from which the windows were parsed ("raw" in files).
      status: how well the answer could be parsed.
      duration: of the video, in seconds.
      support: of each window, see `calce_jax.moments.scoring.QueryMoments`; by it windows are ordered by score. None
        without windows, and in files of other programs, where the scores in `windows` serve.
      answer_windows: how many of `windows`, from the first, are of the answer; the others are of other beams. None if
        all are.
      presence: of an answer without a window, how far the other beams say that the query happens, on the scale of
        `support`; None where there are windows, and if not known.
      beams: probability and windows of every answer of the beam search that can be read, most probable first; None
        where nothing reads them, see `calce_jax.inference.look_again`.
      saliency: of each clip of two seconds, any scale ("pred_saliency_scores" in files); `None` if not predicted.
    """

    qid: str | int
    query: str
    video: str
    windows: list[list[Seconds]]
    text: str | None = None
    status: ParseStatus | None = None
    duration: Seconds | None = None
    support: list[Seconds] | None = None
    saliency: list[int | float] | None = None
    answer_windows: int | None = None
    presence: float | None = None
    beams: list[tuple[float, list[Window]]] | None = None

    @property
    def malformed(self) -> bool:
        """Whether the answer had to be repaired or had no window; False where the status is not known."""
        return self.status not in (None, "exact")


def reorder_windows(prediction: Prediction, window_order: WindowOrder) -> Prediction:
    """Return the prediction with its windows in another order.

    Windows of other beams than the answer's stay behind those of the answer, and are ordered among themselves by
    support. Another order than the given one replaces the scores, because some protocols sort by score: by ones that
    fall from 1 for "longest", and by the support, where there is one, for "score".
    """
    if window_order == "given":
        return prediction
    scores = prediction.support or [window[2] for window in prediction.windows]
    count = len(scores) if prediction.answer_windows is None else prediction.answer_windows
    order = order_windows(prediction.windows[:count], scores[:count], window_order)
    order += [count + i for i in order_windows(prediction.windows[count:], scores[count:], "score")]
    scores = [scores[i] for i in order]
    support = prediction.support and scores
    if window_order == "longest":
        scores = [1 - place / len(order) for place in range(len(order))]
    elif support:
        scores = falling_scores(support)
    windows = [[*prediction.windows[i][:2], score] for i, score in zip(order, scores, strict=True)]
    return dataclasses.replace(prediction, windows=windows, support=support)


def write_predictions(path: str | Path, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line, without the optional fields that are not set.

    Raises:
      OSError: the file cannot be written.
    """
    write_atomic(path, "".join(json.dumps(prediction_to_json(prediction)) + "\n" for prediction in predictions))


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """Return the JSON object of a prediction, without the fields that are not set."""
    row = {
        "qid": prediction.qid,
        "query": prediction.query,
        "vid": prediction.video,
        "pred_relevant_windows": prediction.windows,
        "raw": prediction.text,
        "status": prediction.status,
        "duration": prediction.duration,
        "support": prediction.support,
        "answer_windows": prediction.answer_windows,
        "presence": prediction.presence,
        "beams": prediction.beams,
        "pred_saliency_scores": prediction.saliency,
    }
    return {field: value for field, value in row.items() if value is not None}


def read_predictions(path: str | Path) -> list[Prediction]:
    """Read predictions in any of three formats, recognised by the content.

    One JSON object a line, as `write_predictions` and the official release write it; or the original's JSON list, whose
    rows hold the windows as "stage1_result" and the video as "video".

    Raises:
      UserFileNotFoundError: there is no such file.
      PredictionError: the file is not UTF-8; or all faults of its rows, with line and field; ids that repeat are one.
    """
    text = read_text(path, "predictions", "write one with `calce infer`", PredictionError)
    faults: list[str] = []
    predictions: list[Prediction] = []
    locations_by_qid: dict[str, list[str]] = {}
    for location, row in read_rows(text, faults):
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
    raise_faults(path, faults, PredictionError)
    return predictions


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
    saliency = row.get("pred_saliency_scores")
    if saliency is not None and not (isinstance(saliency, list) and saliency and all(map(is_finite_number, saliency))):
        yield f"pred_saliency_scores: expected a number for each clip, got {saliency!r:.60}; leave the field out"
    duration = row.get("duration")
    if duration is not None and not (is_finite_number(duration) and duration > 0):
        yield f"duration: expected positive seconds, got {duration!r:.60}; leave the field out if it is not known"
    support, windows = row.get("support"), next((row[name] for name in _WINDOW_FIELD_NAMES if name in row), None)
    if support is not None and not (
        isinstance(support, list)
        and all(map(is_finite_number, support))
        and isinstance(windows, list)
        and len(support) == len(windows)
    ):
        yield f"support: expected a number for each window, got {support!r:.60}; leave the field out if there is none"
    count = row.get("answer_windows")
    if count is not None and not (type(count) is int and isinstance(windows, list) and 0 <= count <= len(windows)):
        yield f"answer_windows: expected how many windows are of the answer, got {count!r:.60}; leave the field out"
    presence = row.get("presence")
    if presence is not None and not is_finite_number(presence):
        yield f"presence: expected a number, got {presence!r:.60}; leave the field out if it is not known"
    beams = row.get("beams")
    if beams is not None and not (isinstance(beams, list) and all(map(_is_beam, beams))):
        yield f"beams: expected [probability, [[start, end], ...]] of each, got {beams!r:.60}; leave the field out"


def _find_window_faults(row: dict[str, Any]) -> Iterable[str]:
    field = next((name for name in _WINDOW_FIELD_NAMES if name in row), None)
    if field is None:
        yield "pred_relevant_windows: missing; give [[start, end, score], ...], or [] for no moment"
        return
    if not isinstance(row[field], list):
        yield f"{field}: expected a list of [start, end, score], got {row[field]!r:.60}"
        return
    for window in row[field]:
        if not (isinstance(window, list) and len(window) in (2, 3) and all(map(is_finite_number, window))):
            yield f"{field}: expected [start, end] or [start, end, score] in numbers, got {window!r:.60}"
        elif not (0 <= window[0] <= window[1] or window[:2] == [-1, -1]):
            yield f"{field}: {window!r:.60} starts before the video or ends before it starts; give 0 <= start <= end"


def _is_beam(beam: Any) -> bool:
    if not (isinstance(beam, list) and len(beam) == 2 and is_finite_number(beam[0]) and isinstance(beam[1], list)):
        return False
    return all(isinstance(w, list) and len(w) == 2 and all(map(is_finite_number, w)) and w[0] <= w[1] for w in beam[1])


def _video_id(row: dict[str, Any]) -> Any:
    return row.get("vid", row.get("video"))


def _prediction_from_json(row: dict[str, Any]) -> Prediction:
    windows = row[next(name for name in _WINDOW_FIELD_NAMES if name in row)]
    windows, beams = [[*window, 1.0][:3] for window in windows], row.get("beams")
    return Prediction(
        row["qid"],
        row["query"],
        _video_id(row),
        windows,
        row.get("raw"),
        row.get("status"),
        row.get("duration"),
        row.get("support"),
        row.get("pred_saliency_scores"),
        row.get("answer_windows"),
        row.get("presence"),
        None if beams is None else [(float(probability), beam) for probability, beam in beams],
    )


def write_submission(path: str | Path, predictions: Sequence[Prediction], split: SubmissionSplit) -> None:
    """Write a QVHighlights submission, a zip of `hl_val_submission.jsonl` and `hl_test_submission.jsonl`.

    A submission holds both splits: an existing zip keeps its other split. Ids become the release's integers;
    a query without a window gets [0, 0, 0], since every query needs one; saliency scores, which are optional,
    are those of the predictions that have them.

    Args:
      path: the zip; replaced atomically.
      predictions: one for every query of the split.
      split: the split that they are of.

    Raises:
      PredictionError: ids that are not integers, or an existing file that is no zip.
      OSError: the file cannot be written.
    """
    foreign_qids = [
        prediction.qid for prediction in predictions if not re.fullmatch("[0-9]+", normalise_qid(prediction.qid))
    ]
    if foreign_qids:
        raise PredictionError(
            f"{path}: qid: {len(foreign_qids)} ids such as {foreign_qids[0]!r} are not of QVHighlights, whose ids are "
            "integers",
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
                **({} if prediction.saliency is None else {"pred_saliency_scores": prediction.saliency}),
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
    """Return the contents of an existing submission by name; empty if there is none."""
    if not path.exists():
        return {}
    if not zipfile.is_zipfile(path):
        raise PredictionError(f"{path}: not a zip", "choose another name for the submission, or remove the file")
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
