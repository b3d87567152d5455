"""Sections of a run, each within its share of the time; every row is printed and written as soon as it is there."""

import dataclasses
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import jax

from benchmarks.paired import BenchmarkSettings, ComparisonRow, write_rows

SUBJECT = "gpu"
# A section is not begun with less: a program of full size is not compiled in that time.
MIN_SECONDS = 2.0
# The end of the whole process comes so much after the budget: until then a section may end by itself.
GRACE_SECONDS = 5.0


@runtime_checkable
class SectionFn(Protocol):
    """Makes the rows of a section, one after the other."""

    def __call__(self) -> Iterator[ComparisonRow]:
        """Yield each row when it is measured."""
        ...


@dataclass(frozen=True)
class Section:
    """Rows that are measured together.

    Fields:
      name: on the command line, and in messages.
      seconds: its share of the time of all sections.
      rows: measures them.
    """

    name: str
    seconds: float
    rows: SectionFn


class SectionTimeout(BaseException):
    """A section took longer than its share. Not an `Exception`, so that no handler in between swallows it."""


class RowLog:
    """Keeps the rows of a run in `out`/gpu.json, which is replaced at each row.

    Rows of an earlier run of the same device and dtype stay, until their section has rows in this one.

    Args:
      settings: returns what is written with the rows: peak and bandwidth are known after the first section.
    """

    def __init__(self, settings: Callable[[], BenchmarkSettings]):
        self.rows: list[dict[str, Any]] = []
        self._settings = settings
        self._earlier = _rows_of_earlier_run(settings())

    def add(self, section: str, row: ComparisonRow) -> None:
        """Add a measured row, which `benchmarks.paired.compare` has printed."""
        self._write({"section": section, "status": "measured", **dataclasses.asdict(row)})

    def add_reason(self, section: str, status: str, reason: str) -> None:
        """Add and print a row that was not measured; status is "failed" or "skipped"."""
        print(f"{section}: {status}: {reason}", flush=True)
        self._write({"section": section, "status": status, "reason": reason})

    def _write(self, row: dict[str, Any]) -> None:
        self.rows.append(row | {"date": datetime.now(UTC).isoformat(timespec="seconds")})
        measured = {row["section"] for row in self.rows}
        earlier = [row for row in self._earlier if row["section"] not in measured]
        write_rows(self._settings(), SUBJECT, [*earlier, *self.rows])


def _rows_of_earlier_run(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    path = settings.out / f"{SUBJECT}.json"
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    same = all(content["setting"][name] == getattr(settings, name) for name in ("device", "dtype"))
    return content["rows"] if same and content["device"] == jax.devices()[0].device_kind else []


def run_sections(
    sections: Sequence[Section], log: RowLog, deadline: float, clock: Callable[[], float] = time.monotonic
) -> None:
    """Run the sections in order; one that fails or exceeds its share is a row that says so, and the next goes on.

    Args:
      sections: the most wanted first. What one leaves of its share is shared by those after it.
      log: gets the rows.
      deadline: when the budget is spent, in seconds of `clock`.
      clock: seconds, monotonic.
    """
    for number, section in enumerate(sections):
        remaining = deadline - clock()
        limit = remaining * section.seconds / sum(later.seconds for later in sections[number:])
        if limit < min(MIN_SECONDS, section.seconds):
            log.add_reason(section.name, "skipped", f"{remaining:.0f} s of the budget are left")
            continue
        try:
            with _time_limit(limit):
                for row in section.rows():
                    log.add(section.name, row)
        except SectionTimeout:
            log.add_reason(section.name, "failed", f"took longer than its share, {limit:.0f} s")
        except ImportError as error:
            log.add_reason(section.name, "skipped", str(error))
        except Exception as error:  # whatever a kernel, a compiler or an allocator raises concerns this section alone
            message = " ".join(f"{type(error).__name__}: {error}".split())
            log.add_reason(section.name, "failed", message[:600])
        _free_memory()


def end_at(seconds: float, end: Callable[[int], object] = os._exit) -> threading.Timer:
    """End the process after so many seconds, even in the middle of a compilation; the rows are on disk by then.

    Args:
      seconds: from now.
      end: called with the exit code.
    """

    def stop() -> None:
        print("the budget is spent", file=sys.stderr, flush=True)
        sys.stdout.flush()
        end(124)

    timer = threading.Timer(seconds, stop)
    timer.daemon = True
    timer.start()
    return timer


def markdown_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as the table of docs/benchmarks.md."""
    lines = [
        "| what | ours | torch | ratio | of the ceiling | GiB, ours and torch | same? |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["status"] != "measured":
            lines.append(f"| {row['section']} | {row['status']}: {row['reason']} | | | | | |")
            continue
        notes = row["notes"]
        share = notes.get("share of bandwidth", notes.get("share of peak"))
        memory = ", ".join(f"{notes[name]:.1f}" for name in ("GiB", "their GiB") if name in notes)
        lines.append(
            f"| {row['name']} | {1e3 * row['ours']:.1f} ms | {1e3 * row['theirs']:.1f} ms "
            f"| {row['ratio']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f}) "
            f"| {'' if share is None else f'{share:.0%}'} | {memory} | {row['agreement']} |"
        )
    return "\n".join(lines)


def read_rows(settings: BenchmarkSettings) -> list[dict[str, Any]]:
    """Return the rows in `out`/gpu.json."""
    return json.loads((settings.out / f"{SUBJECT}.json").read_text(encoding="utf-8"))["rows"]


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `SectionTimeout` in the body after so many seconds, or when the call that then runs returns."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise SectionTimeout

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _free_memory() -> None:
    import torch  # noqa: PLC0415

    gc.collect()
    torch.cuda.empty_cache()  # does nothing where there is no GPU
