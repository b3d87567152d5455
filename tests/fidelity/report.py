"""Rows of the report: compared cases, equal cases, and the largest deviations."""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

EXACT = 0.0
MAX_NAMED = 3  # failures that a note lists
START, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"


@dataclass(frozen=True)
class ReportRow:
    """One line of the report.

    Attributes:
      group: the recording's file and, after a slash, the compared part.
      cases: number of compared cases, without those decided by ties.
      equal: number of cases that are equal within the tolerance.
      worst_abs: largest absolute deviation; None if it is not finite.
      worst_rel: largest deviation relative to the largest value of its array; None if it is not finite.
      tolerance: largest deviation that counts as equal; 0 requires identity.
      is_absolute: the tolerance is of `worst_abs` instead of `worst_rel`.
      ok: no case differs, and there is one, unless the row is absent.
      is_absent: the folder has no recording of this group, so that nothing is compared and nothing has failed.
      note: failures with their reasons, cases decided by ties, and recordings that are not compared.
    """

    group: str
    cases: int
    equal: int
    worst_abs: float | None
    worst_rel: float | None
    tolerance: float
    is_absolute: bool
    ok: bool
    is_absent: bool
    note: str


class Case:
    """One case of a group; equal if it has no differences."""

    def __init__(self, tolerance: float, *, is_absolute: bool = False):
        self.tolerance, self.is_absolute = tolerance, is_absolute
        self.worst_abs = self.worst_rel = 0.0
        self.differences: list[str] = []

    def fail(self, what: str) -> None:
        """Add a difference."""
        self.differences.append(what)

    def close(self, ours: Any, recorded: Any, what: str = "", *, scale: float | None = None) -> None:
        """Compare numbers: the largest deviation is at most the tolerance.

        It is relative to the largest recorded value, unless the group's tolerance is absolute.

        Args:
          ours, recorded: arrays or numbers of the same shape.
          what: their name in a note.
          scale: divisor of the deviation instead of the largest recorded value, for sums with cancellation.
        """
        a, b = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        if a.shape != b.shape:
            self.fail(f"{what} has the shape {a.shape}, recorded is {b.shape}")
            return
        if not a.size:
            return
        absolute = float(np.abs(a - b).max())
        relative = absolute / max(float(np.abs(b).max()) if scale is None else scale, np.finfo(np.float32).tiny)
        # NaN, or infinity where none was recorded, counts as an infinite deviation.
        absolute, relative = (x if math.isfinite(x) else math.inf for x in (absolute, relative))
        self.worst_abs, self.worst_rel = max(self.worst_abs, absolute), max(self.worst_rel, relative)
        if (judged := absolute if self.is_absolute else relative) > self.tolerance:
            self.fail(f"{what} deviates by {judged:.1e}".strip())

    def same(self, ours: Any, recorded: Any, what: str = "") -> None:
        """Compare values that must be identical: strings, indices, masks, tokens, or nested lists of them."""
        a, b = (x.tolist() if isinstance(x, np.ndarray) or hasattr(x, "__array__") else x for x in (ours, recorded))
        if a == b:
            return
        with suppress(TypeError, ValueError):  # not numeric, or of different lengths
            self.worst_abs = max(self.worst_abs, float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()))
        self.fail(f"{what} {_short(a)}, recorded {_short(b)}".strip())


class Group:
    """Collects the cases of one row."""

    def __init__(self, name: str, tolerance: float = EXACT, *, is_absolute: bool = False):
        self.name, self.tolerance, self.is_absolute = name, tolerance, is_absolute
        self.cases: list[tuple[str, Case]] = []
        self.tied: list[tuple[str, Case]] = []
        self.extra_notes: list[str] = []

    @contextmanager
    def case(self, name: str, *, tied: bool = False) -> Iterator[Case]:
        """Collect a case; an exception inside makes it fail with the error in the note.

        Args:
          name: of the case, for the note if it fails.
          tied: the recorded result depends on how ties are broken, so it is counted apart.
        """
        case = Case(self.tolerance, is_absolute=self.is_absolute)
        try:
            yield case
        except Exception as error:
            case.fail(_describe_error(error))
        (self.tied if tied else self.cases).append((name, case))

    def add_note(self, text: str) -> None:
        """Add a sentence to the row's note."""
        self.extra_notes.append(text)

    def row(self) -> ReportRow:
        """Return the row of the collected cases."""
        failed = [f"{name}: {'; '.join(case.differences)}" for name, case in self.cases if case.differences]
        notes = [] if self.cases or self.tied else ["no case found"]
        notes += failed[:MAX_NAMED] + ([f"and {len(failed) - MAX_NAMED} more"] if len(failed) > MAX_NAMED else [])
        if self.tied:
            equal = sum(not case.differences for _, case in self.tied)
            notes.append(f"apart: {len(self.tied)} cases decided by ties, {equal} of them equal")
        worst = [
            max((getattr(case, name) for _, case in self.cases), default=0.0) for name in ("worst_abs", "worst_rel")
        ]
        absolute, relative = (x if math.isfinite(x) else None for x in worst)
        return ReportRow(
            group=self.name,
            cases=len(self.cases),
            equal=len(self.cases) - len(failed),
            worst_abs=absolute,
            worst_rel=relative,
            tolerance=self.tolerance,
            is_absolute=self.is_absolute,
            ok=bool(self.cases or self.tied) and not failed,
            is_absent=False,
            note=". ".join([*notes, *self.extra_notes]),
        )


def failed(group: str, error: Exception | str) -> ReportRow:
    """Return a failed row without cases, with the error as its note."""
    note = error if isinstance(error, str) else _describe_error(error)
    return ReportRow(group, 0, 0, None, None, EXACT, is_absolute=False, ok=False, is_absent=False, note=note)


def absent(group: str, files: Sequence[str]) -> ReportRow:
    """Return the row of a group that has none of its files in the folder."""
    note = f"absent: the folder has no {' or '.join(files)}"
    return ReportRow(group, 0, 0, None, None, EXACT, is_absolute=False, ok=True, is_absent=True, note=note)


def all_equal(rows: Sequence[ReportRow]) -> bool:
    """Return whether anything was compared, and nothing differs."""
    return any(row.cases for row in rows) and all(row.ok for row in rows)


def as_text(rows: Sequence[ReportRow]) -> str:
    """Format the rows as an aligned table, followed by the notes and a verdict."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    notes = [f"{row.group}: {row.note}" for row in rows if row.note]
    wrong, num_absent = sum(not row.ok for row in rows), sum(row.is_absent for row in rows)
    verdict = f"{len(rows) - num_absent} rows, " + (f"{wrong} not ok" if wrong else "all ok")
    verdict += f"; {num_absent} absent" if num_absent else ""
    return "\n".join([*lines, "", *notes, *([""] if notes else []), verdict])


def as_markdown(rows: Sequence[ReportRow]) -> str:
    """Format the rows as a Markdown table."""
    lines = [[*_COLUMNS, "note"], ["---"] * (len(_COLUMNS) + 1)]
    lines += [[*_cells(row), row.note.replace("|", "\\|").replace("\n", " ")] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, rows: Sequence[ReportRow]) -> None:
    """Write the rows as a JSON list of objects."""
    _replace(path, json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False) + "\n")


def write_page(path: Path, rows: Sequence[ReportRow]) -> None:
    """Replace the text between the markers of a Markdown page by the table.

    Raises:
      ValueError: the page lacks a marker.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: has no markers for the table; put {START} and {END} in it")
    _replace(path, f"{before}{START}\n{as_markdown(rows)}\n{END}{after}")


_COLUMNS = ("group", "cases", "equal", "worst abs", "worst rel", "tolerance", "ok")


def _cells(row: ReportRow) -> tuple[str, ...]:
    deviations = ("-" if x is None else f"{x:.1e}" if x else "0" for x in (row.worst_abs, row.worst_rel))
    tolerance = f"{row.tolerance:g}{' abs' * row.is_absolute}" if row.tolerance else "exact"
    verdict = "absent" if row.is_absent else "yes" if row.ok else "NO"
    return (row.group, str(row.cases), str(row.equal), *deviations, tolerance, verdict)


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(error, 300)}"


def _short(value: Any, max_chars: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
