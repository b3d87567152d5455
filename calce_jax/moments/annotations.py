"""Queries about videos and their true windows, read from every format in which they are published.

    official    QVHighlights' release: one JSON object a line, with qid, query, vid, duration, relevant_windows
    lines       Charades-STA's release: "AO8RW 0.0 6.9##a person is putting a book on a shelf."
    original    the original's JSON list: as official, with items and, for stage 2, stage1_result
    separated   lines of TimeLens-Bench: "v_abc>>>a man runs>>>[0.0, 6.9]", or several windows [[0.0, 6.9], ...]
    by video    one JSON object: ActivityNet Captions, TimeLens-Bench, TACoS; see `moments.annotations_by_video`
    absent      queries that do not happen in their video; see `moments.absent_queries`
    own         one JSON object a line: as official, with items, kind, fact, facts and, for stage 2, stage1_windows

The format is recognised by the content. One error names all rows that cannot be used.
"""

import csv
import dataclasses
import difflib
import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from calce_jax.errors import UserError
from calce_jax.moments.absent_queries import read_absent_queries
from calce_jax.moments.annotation_lines import SEPARATOR, parse_charades_line, parse_separated_line
from calce_jax.moments.annotations_by_video import read_videos, rows_by_video
from calce_jax.moments.json_rows import (
    check_characters,
    foreign_rows_fault,
    is_finite_number,
    may_have_surrogates,
    normalise_qid,
    parse_json_line,
    raise_faults,
    read_rows,
)
from calce_jax.moments.windows import Seconds
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.text_files import read_text

STAGE1_WINDOW_FIELDS = ("stage1_windows", "stage1_result")
_FIELDS = ("qid", "query", "vid", "video", "duration", "items", "kind", "fact", "facts", "relevant_windows")
_FIELDS += STAGE1_WINDOW_FIELDS
_SALIENCY_FIELDS = ("relevant_clip_ids", "saliency_scores")
# Of predictions, not read; any other field may be there too, unless it looks like one of `_FIELDS` that the row lacks.
_UNREAD_FIELDS = ("pred_relevant_windows", "pred_saliency_scores")
_SHORT_FORMS = {"id": "qid", "video_id": "vid", "sentence": "query", "window": "relevant_windows"}
_SHORT_FORMS |= {"windows": "relevant_windows", "timestamps": "relevant_windows", "moments": "relevant_windows"}
_MIN_SIMILARITY = 0.8  # difflib's ratio: "relevent_windows" has 0.94, "clip_windows" 0.71
# Tolerated difference of annotated and real durations: annotations are rounded, and so are headers.
DURATION_TOLERANCE_S = 1.0
_MISSING_REMEDY = "give the path of a file that was released or written"


class AnnotationError(UserError):
    """Annotations that cannot be used; the message names file, row, field and remedy, for all faults together."""


@dataclasses.dataclass(frozen=True)
class Annotation:
    """One query about one video.

    Attributes:
      qid: the query's id: 2579 in the official release, "QVHighlight_2579" in the original's files. Lines of
        Charades-STA have none and are numbered: "charades_sta_test_1".
      video: the video's id ("vid" or "video" in files).
      query: the sentence.
      items: the things named in the query, as noun phrases; empty where the file lists none.
      duration: of the video, in seconds; `None` where the file has none and the video has not been read yet.
      windows: the true [start, end] in seconds, as annotated ("relevant_windows" in files); they may reach beyond the
        video. Empty where the query does not happen in the video; `None` where they are not published, as in a test
        split.
      stage1_windows: windows predicted by stage 1, in seconds; `None` before stage 1 has run.
      kind: what answering needs, e.g. "visual"; `None` where it is not known.
      clip_ratings: of QVHighlights, the ratings of clips of two seconds by three annotators, by the clip's number
        ("relevant_clip_ids" and "saliency_scores" in files); `None` where the file has none.
      fact: what the query asks for, in a form that is equal for queries of the same meaning; `None` if not known.
      facts: everything that happens in the video, in the same form; `None` if not known.
      location: where it was read, "val.jsonl, line 3", for messages; "" for one that was not. Not compared.
    """

    qid: str | int
    video: str
    query: str
    items: list[str]
    duration: Seconds | None
    windows: list[list[Seconds]] | None
    stage1_windows: list[list[Seconds]] | None = None
    kind: str | None = None
    clip_ratings: dict[int, list[int | float]] | None = None
    fact: str | None = None
    facts: list[str] | None = None
    location: str = dataclasses.field(default="", compare=False, repr=False)

    @property
    def is_absent(self) -> bool:
        """Whether the query is known not to happen in the video."""
        return self.windows is not None and not self.windows

    @property
    def clipped_windows(self) -> list[list[Seconds]]:
        """The true windows, clipped to the end of the video; windows that begin after it are left out."""
        end = math.inf if self.duration is None else self.duration
        return [[start, min(stop, end)] for start, stop in self.windows or () if start < end]


def read_annotations(
    path: str | Path,
    *,
    items: str | Path | None = None,
    durations: Mapping[str, Seconds] | str | Path | None = None,
) -> list[Annotation]:
    """Read a file of any of the formats above, in its order.

    Windows that reach beyond their video are kept and logged as a warning; `Annotation.clipped_windows` clips them.

    Args:
      path: the file.
      items: the original's file of items, {qid: {"query": ..., "items": [...]}}, for annotations that have none.
        A query is looked up there by its id, then by its sentence.
      durations: seconds by video id, or Charades' CSV with the columns "id" and "length"; used for annotations
        without a duration.

    Raises:
      UserFileNotFoundError: there is no such file.
      AnnotationError: a file is not UTF-8; or all faults of its rows: a field that is missing, misspelt or of the wrong
        type, a window that is reversed, not finite or wholly outside the video, an id that repeats.
    """
    annotations, faults = parse_annotations(path, items=items, durations=durations)
    raise_faults(path, faults, AnnotationError)
    warn_windows_beyond_video(path, annotations)
    return annotations


def parse_annotations(
    path: str | Path,
    *,
    items: str | Path | None = None,
    durations: Mapping[str, Seconds] | str | Path | None = None,
) -> tuple[list[Annotation], list[str]]:
    """Return the rows of a file that can be used, and "LOCATION, FIELD: what is wrong; remedy" for each fault.

    Args:
      path: as for `read_annotations`.
      items: as for `read_annotations`.
      durations: as for `read_annotations`.

    Raises:
      UserFileNotFoundError: there is no such file.
      AnnotationError: a file is not UTF-8.
    """
    path = Path(path)
    text = read_text(path, "annotations", _MISSING_REMEDY, AnnotationError)
    duration_by_video = durations if isinstance(durations, Mapping) else _read_durations(durations) if durations else {}
    faults: list[str] = []
    annotations: list[Annotation] = []
    videos = read_videos(text)
    rows = (
        read_rows(text, faults, lambda number, line: _parse_line(line, f"{path.stem}_{number}"))
        if videos is None
        else rows_by_video(videos, path.stem, faults)
    )
    rows = list(read_absent_queries(list(rows), path.stem, faults))
    if foreign := foreign_rows_fault(rows, (*_FIELDS, *_SHORT_FORMS)):
        return [], [*faults, foreign]
    for location, row in rows:
        row_faults = list(_find_row_faults(row))
        faults += [f"{location}, {fault}" for fault in row_faults]
        if not row_faults:
            annotations.append(_annotation_from_json(row, duration_by_video, f"{path}, {location}"))
    faults += find_repeated_qids(annotations)
    return annotations if items is None else _with_items(annotations, items), faults


def find_repeated_qids(annotations: Sequence[Annotation]) -> list[str]:
    """Return a fault for each id that more than one annotation has; "QVHighlight_7", "7" and 7 are one id."""
    counts = Counter(normalise_qid(annotation.qid) for annotation in annotations)
    return [f"qid: {qid} is given to {count} queries; keep one" for qid, count in counts.items() if count > 1]


def windows_without_length(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Return the queries with a true window that ends where it begins: no predicted window can meet it."""
    return [row for row in annotations if any(start == end for start, end in row.windows or ())]


def windows_beyond_video(annotations: Iterable[Annotation], durations: Mapping[str, Seconds]) -> list[Annotation]:
    """Return the queries with a true window that ends more than `DURATION_TOLERANCE_S` after its video.

    Args:
      annotations: the queries.
      durations: seconds by video id, used for annotations without a duration.
    """
    return [
        row
        for row in annotations
        for duration in [durations.get(row.video) if row.duration is None else row.duration]
        if duration is not None and any(end > duration + DURATION_TOLERANCE_S for _, end in row.windows or ())
    ]


def write_annotations(path: str | Path, annotations: Iterable[Annotation]) -> None:
    """Write our own format, one JSON object a line, without the fields that are not known.

    Raises:
      OSError: the file cannot be written.
    """
    write_atomic(path, "".join(json.dumps(_annotation_to_json(annotation)) + "\n" for annotation in annotations))


def _annotation_to_json(annotation: Annotation) -> dict[str, Any]:
    row = {
        "qid": annotation.qid,
        "query": annotation.query,
        "vid": annotation.video,
        "duration": annotation.duration,
        "items": annotation.items,
        "kind": annotation.kind,
        "fact": annotation.fact,
        "facts": annotation.facts,
        "relevant_windows": annotation.windows,
        "stage1_windows": annotation.stage1_windows,
        "relevant_clip_ids": None if annotation.clip_ratings is None else list(annotation.clip_ratings),
        "saliency_scores": None if annotation.clip_ratings is None else list(annotation.clip_ratings.values()),
    }
    return {field: value for field, value in row.items() if value is not None or field == "duration"}


def _parse_line(line: str, qid: str) -> Any:
    if line.lstrip().startswith("{"):
        return parse_json_line(line)
    return parse_separated_line(line, qid) if SEPARATOR in line else parse_charades_line(line, qid)


def _find_row_faults(row: Any) -> Iterable[str]:
    if not isinstance(row, dict):
        yield f"expected an object with qid, query, vid and duration, got {row!r:.60}"
        return
    yield from _find_misspelt_fields(row)
    if not isinstance(row.get("qid"), str | int) or isinstance(row.get("qid"), bool):
        yield f"qid: expected the query's id, {_describe_value(row, 'qid')}"
    if not isinstance(row.get("query"), str) or not row["query"].strip():
        yield f"query: expected a sentence, {_describe_value(row, 'query')}"
    video = _field_name(row, "vid", "video")
    if not isinstance(row.get(video), str) or not row[video]:
        yield f"{video}: expected the video's id, {_describe_value(row, video)}"
    items = row.get("items", [])
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        yield f"items: expected a list of noun phrases, {_describe_value(row, 'items')}"
    if not isinstance(row.get("kind"), str | None):
        yield f"kind: expected a word, {_describe_value(row, 'kind')}; leave the field out where it is not known"
    yield from _find_fact_faults(row)
    duration = row.get("duration")
    if not (is_finite_number(duration) and duration > 0):
        if duration is not None or "duration" not in row:
            yield f"duration: expected the video's length in positive seconds, {_describe_value(row, 'duration')}"
        duration = None
    yield from _find_window_faults(row, "relevant_windows", duration)
    yield from _find_window_faults(row, _field_name(row, *STAGE1_WINDOW_FIELDS), None)
    yield from _find_saliency_faults(row)


def _find_fact_faults(row: dict[str, Any]) -> Iterable[str]:
    fact, facts, windows = row.get("fact"), row.get("facts"), row.get("relevant_windows")
    if not isinstance(fact, str | None) or fact == "":
        yield f"fact: expected what the query asks for, {_describe_value(row, 'fact')}; leave the field out"
    elif facts is not None and not (isinstance(facts, list) and all(isinstance(text, str) for text in facts)):
        yield f"facts: expected a list of all that happens in the video, {_describe_value(row, 'facts')}"
    elif fact is not None and facts is not None and isinstance(windows, list) and (fact in facts) != bool(windows):
        yield (
            f"facts: {fact!r:.60} is {'' if fact in facts else 'not '}one of them, but the query has "
            f"{'windows' if windows else 'an empty list of windows'}; correct the facts or the windows"
        )


def _find_misspelt_fields(row: dict[str, Any]) -> Iterable[str]:
    """Yield a fault for each unknown field that looks like a known one which the row lacks."""
    absent = {name for name in _FIELDS if name not in row}
    for aliases in (("vid", "video"), STAGE1_WINDOW_FIELDS):
        absent -= set() if absent.issuperset(aliases) else set(aliases)
    for field in [name for name in row if name not in (*_FIELDS, *_SALIENCY_FIELDS, *_UNREAD_FIELDS)]:
        name = re.sub(r"[\s-]+", "_", field.strip().lower())
        close = difflib.get_close_matches(name, sorted(absent), n=1, cutoff=_MIN_SIMILARITY)
        meant = close[0] if close else _SHORT_FORMS.get(name)
        if meant in absent:
            yield f"{field}: there is no such field; did you mean {meant}? Rename it"


def _find_window_faults(row: dict[str, Any], field: str, duration: Seconds | None) -> Iterable[str]:
    windows = row.get(field)
    if windows is None:
        return
    if not isinstance(windows, list):
        yield f"{field}: expected a list of [start, end] in seconds, {_describe_value(row, field)}"
        return
    for window in windows:
        if not isinstance(window, list | tuple) or len(window) != 2 or not all(map(is_finite_number, window)):
            yield f"{field}: expected [start, end] in seconds, got {window!r:.60}; fix or remove the window"
        elif window[0] > window[1]:
            yield f"{field}: {window} ends before it begins; swap its ends or remove it"
        elif window[0] < 0 or (duration is not None and window[0] >= duration):
            yield f"{field}: {window} is outside the video, which lasts {duration} s; fix the window or the duration"


def _find_saliency_faults(row: dict[str, Any]) -> Iterable[str]:
    clips, ratings = (row.get(field) for field in _SALIENCY_FIELDS)
    if clips is None or ratings is None:
        return
    if not isinstance(clips, list) or not all(isinstance(clip, int) and not isinstance(clip, bool) for clip in clips):
        yield f"relevant_clip_ids: expected the numbers of clips, {_describe_value(row, 'relevant_clip_ids')}"
    elif len(set(clips)) != len(clips):
        yield "relevant_clip_ids: a clip repeats; keep one"
    elif (
        not isinstance(ratings, list)
        or len(ratings) != len(clips)
        or not all(isinstance(rating, list) and rating and all(map(is_finite_number, rating)) for rating in ratings)
        or len({len(rating) for rating in ratings}) > 1
    ):
        yield f"saliency_scores: expected a list of ratings for each of {len(clips)} clips; fix it"


def _describe_value(row: Mapping[str, Any], field: str) -> str:
    return f"got {row[field]!r:.60}; fix it" if field in row else "which is missing; add the field"


def _field_name(row: Mapping[str, Any], *names: str) -> str:
    """Return the first of the names that is a field of the row; the first name if none is."""
    return next((name for name in names if name in row), names[0])


def _annotation_from_json(row: dict[str, Any], durations: Mapping[str, Seconds], location: str) -> Annotation:
    windows, stage1_windows = (row.get(name) for name in ("relevant_windows", _field_name(row, *STAGE1_WINDOW_FIELDS)))
    video = row[_field_name(row, "vid", "video")]
    return Annotation(
        qid=row["qid"],
        video=video,
        query=row["query"],
        items=list(row.get("items", [])),
        duration=durations.get(video) if row["duration"] is None else row["duration"],
        windows=None if windows is None else [list(window) for window in windows],
        stage1_windows=None if stage1_windows is None else [list(window) for window in stage1_windows],
        kind=row.get("kind"),
        clip_ratings=_clip_ratings(row),
        fact=row.get("fact"),
        facts=None if row.get("facts") is None else list(row["facts"]),
        location=location,
    )


def _clip_ratings(row: dict[str, Any]) -> dict[int, list[int | float]] | None:
    clips, ratings = (row.get(field) for field in _SALIENCY_FIELDS)
    return None if clips is None or ratings is None else dict(zip(clips, ratings, strict=True))


def _read_durations(path: str | Path) -> dict[str, Seconds]:
    text = read_text(path, "durations", _MISSING_REMEDY, AnnotationError)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not {"id", "length"} <= set(reader.fieldnames or ()):
        raise AnnotationError(f'{path}: no columns "id" and "length"', "give the CSV file that came with Charades")
    duration_by_video: dict[str, Seconds] = {}
    for row in reader:
        duration = _parse_seconds(row["length"])
        if not duration > 0:
            raise AnnotationError(
                f"{path}, line {reader.line_num}, length: expected positive seconds, got {row['length']!r:.60}",
                "fix or drop the line",
            )
        duration_by_video[row["id"]] = duration
    return duration_by_video


def _parse_seconds(text: str | None) -> float:
    """Return the number, or NaN where the text is none that is finite."""
    try:
        seconds = float(text or "")
    except ValueError:
        return math.nan
    return seconds if math.isfinite(seconds) else math.nan


def _with_items(annotations: Iterable[Annotation], path: str | Path) -> list[Annotation]:
    text = read_text(path, "items", _MISSING_REMEDY, AnnotationError)
    try:
        entries = json.loads(text)
        if may_have_surrogates(text):
            check_characters(entries)
        items_by_qid = {normalise_qid(qid): entry["items"] for qid, entry in entries.items()}
        items_by_query = {entry["query"]: entry["items"] for entry in entries.values()}
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise AnnotationError(
            f'{path}: expected {{qid: {{"query": ..., "items": [...]}}}} ({type(error).__name__}: {error})',
            "give the original's file of items",
        ) from None
    return [
        annotation
        if annotation.items
        else dataclasses.replace(
            annotation,
            items=list(items_by_qid.get(normalise_qid(annotation.qid), items_by_query.get(annotation.query, []))),
        )
        for annotation in annotations
    ]


def warn_windows_beyond_video(source: str | Path, annotations: Sequence[Annotation]) -> None:
    """Log a warning that counts and names the queries of a file or split with windows that reach beyond their video."""
    clipped_qids = [
        annotation.qid for annotation in annotations if annotation.clipped_windows != (annotation.windows or [])
    ]
    if clipped_qids:
        logging.warning(
            "%s: windows of %d of %d queries reach beyond their video; training clips them to it: %s%s",
            source,
            len(clipped_qids),
            len(annotations),
            ", ".join(map(str, clipped_qids[:5])),
            ", ..." if len(clipped_qids) > 5 else "",
        )
