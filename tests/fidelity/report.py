"""Rows of the comparison: what was compared, how much of it is equal, and how far the rest is off."""

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
MAX_NAMED = 3  # failures that a note tells in full
START, END = "<!-- fidelity: begin -->", "<!-- fidelity: end -->"


@dataclass(frozen=True)
class ReportRow:
    """One line of the report.

    Attributes:
      group: the file of the recordings and, behind a slash, what of it.
      cases: compared, without those that ties decide.
      equal: how many of them are equal within the tolerance.
      worst_abs: greatest absolute deviation of any number; None where it is not finite.
      worst_rel: greatest deviation relative to the largest number of its array; None where it is not finite.
      tolerance: the greatest `worst_rel` that counts as equal; 0 where everything has to be identical.
      ok: all cases are equal, and there is one at least.
      note: what failed and why, what was counted apart, what was not compared.
    """

    group: str
    cases: int
    equal: int
    worst_abs: float | None
    worst_rel: float | None
    tolerance: float
    ok: bool
    note: str


class Case:
    """One case of a group; it is equal as long as nothing in it differs."""

    def __init__(self, tolerance: float):
        self.tolerance = tolerance
        self.worst_abs = self.worst_rel = 0.0
        self.differences: list[str] = []

    def fail(self, what: str) -> None:
        """Say that something in this case is not as recorded."""
        self.differences.append(what)

    def close(self, ours: Any, recorded: Any, what: str = "", *, scale: float | None = None) -> None:
        """Compare numbers: the greatest deviation over the largest recorded number is at most the tolerance.

        Args:
          ours, recorded: arrays or numbers of the same shape.
          what: names them in a note.
          scale: what the deviation is divided by instead, for sums that cancel.
        """
        a, b = np.asarray(ours, np.float64), np.asarray(recorded, np.float64)
        if a.shape != b.shape:
            self.fail(f"{what} has the shape {a.shape}, recorded is {b.shape}")
            return
        if not a.size:
            return
        absolute = float(np.abs(a - b).max())
        relative = absolute / max(float(np.abs(b).max()) if scale is None else scale, np.finfo(np.float32).tiny)
        # A NaN is the worst there is, and so is an infinity where none was recorded.
        absolute, relative = (x if math.isfinite(x) else math.inf for x in (absolute, relative))
        self.worst_abs, self.worst_rel = max(self.worst_abs, absolute), max(self.worst_rel, relative)
        if relative > self.tolerance:
            self.fail(f"{what} deviates by {relative:.1e}".strip())

    def same(self, ours: Any, recorded: Any, what: str = "") -> None:
        """Compare what has to be identical: strings, indices, masks, tokens, or nested lists of them."""
        a, b = (x.tolist() if isinstance(x, np.ndarray) or hasattr(x, "__array__") else x for x in (ours, recorded))
        if a == b:
            return
        with suppress(TypeError, ValueError):  # no numbers, or not as many
            self.worst_abs = max(self.worst_abs, float(np.abs(np.asarray(a, float) - np.asarray(b, float)).max()))
        self.fail(f"{what} {_short(a)}, recorded {_short(b)}".strip())


class Group:
    """Counts the cases of one row."""

    def __init__(self, name: str, tolerance: float = EXACT):
        self.name, self.tolerance = name, tolerance
        self.cases: list[tuple[str, Case]] = []
        self.tied: list[tuple[str, Case]] = []
        self.extra_notes: list[str] = []

    @contextmanager
    def case(self, name: str, *, tied: bool = False) -> Iterator[Case]:
        """Count a case. What cannot be run has failed, and the error is told in the note.

        Args:
          name: told where the case fails.
          tied: the recorded answer hangs on ties, so it is counted apart.
        """
        case = Case(self.tolerance)
        try:
            yield case
        except Exception as error:
            case.fail(_describe_error(error))
        (self.tied if tied else self.cases).append((name, case))

    def add_note(self, text: str) -> None:
        """Add to the note."""
        self.extra_notes.append(text)

    def row(self) -> ReportRow:
        """Return what was counted."""
        failed = [f"{name}: {'; '.join(case.differences)}" for name, case in self.cases if case.differences]
        notes = [] if self.cases else ["no case found"]
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
            ok=bool(self.cases) and not failed,
            note=". ".join([*notes, *self.extra_notes]),
        )


def failed(group: str, error: Exception | str) -> ReportRow:
    """Return the row of a group that cannot be compared."""
    return ReportRow(group, 0, 0, None, None, EXACT, False, error if isinstance(error, str) else _describe_error(error))


def as_text(rows: Sequence[ReportRow]) -> str:
    """Return the rows as an aligned table, notes below."""
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    notes = [f"{row.group}: {row.note}" for row in rows if row.note]
    wrong = sum(not row.ok for row in rows)
    verdict = f"{len(rows)} rows, " + (f"{wrong} not ok" if wrong else "all ok")
    return "\n".join([*lines, "", *notes, *([""] if notes else []), verdict])


def as_markdown(rows: Sequence[ReportRow]) -> str:
    """Return the rows as a Markdown table."""
    lines = [[*_COLUMNS, "note"], ["---"] * (len(_COLUMNS) + 1)]
    lines += [[*_cells(row), row.note.replace("|", "\\|").replace("\n", " ")] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_json(path: Path, rows: Sequence[ReportRow]) -> None:
    """Write the rows as a list of objects."""
    _replace(path, json.dumps([asdict(row) for row in rows], indent=1, allow_nan=False) + "\n")


def write_page(path: Path, rows: Sequence[ReportRow]) -> None:
    """Put the table between the markers of a page.

    Raises:
      ValueError: the page does not have both markers.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{path}: no place for the table; put {START} and {END} where it should stand")
    _replace(path, f"{before}{START}\n{as_markdown(rows)}\n{END}{after}")


_COLUMNS = ("group", "cases", "equal", "worst abs", "worst rel", "tolerance", "ok")


def _cells(row: ReportRow) -> tuple[str, ...]:
    deviations = ("-" if x is None else f"{x:.1e}" if x else "0" for x in (row.worst_abs, row.worst_rel))
    tolerance = f"{row.tolerance:g}" if row.tolerance else "exact"
    return (row.group, str(row.cases), str(row.equal), *deviations, tolerance, "yes" if row.ok else "NO")


def _describe_error(error: Exception) -> str:
    return f"{type(error).__name__}: {_short(error, 300)}"


def _short(value: Any, max_chars: int = 60) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= max_chars else f"{text[:max_chars]}..."


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
