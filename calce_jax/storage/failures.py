"""Videos that a long job had to leave out: as a file (failures.jsonl) and as a table for the terminal."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.file_names import single_line

# Rows of the table in the terminal; failures.jsonl has all.
MAX_LISTED_FAILURES = 40


@dataclass(frozen=True)
class Failure:
    """A video, or one query about it, that was left out.

    Attributes:
      video: id or file.
      reason: what is wrong.
      remedy: what to do about it.
    """

    video: str
    reason: str
    remedy: str

    @classmethod
    def of(cls, video: str, error: Exception, remedy: str = "") -> "Failure":
        """Return the failure of a video from an error; `remedy` is used if the error has none of its own."""
        if isinstance(error, UserError):
            return cls(video, error.reason, error.remedy or remedy)
        return cls(video, str(error), remedy)


def write_failures(path: Path, failures: Sequence[Failure]) -> None:
    """Write one JSON object per line and failure, with the fields of `Failure`.

    Raises:
      OSError: the file cannot be written; names it and the remedy.
    """
    write_atomic(path, "".join(json.dumps(dataclasses.asdict(failure)) + "\n" for failure in failures))


def failure_table(failures: Sequence[Failure], all_are_in: str = "failures.jsonl") -> str:
    """Return the failures as a text table of video, reason and remedy, with at most `MAX_LISTED_FAILURES` rows.

    Args:
      failures: in the order of the rows.
      all_are_in: file that has all of them, named if the table has not; "" for none.
    """
    rows = [("video", "what is wrong", "what to do")]
    rows += [(single_line(failure.video), failure.reason, failure.remedy) for failure in failures[:MAX_LISTED_FAILURES]]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{video:<{widths[0]}}  {reason:<{widths[1]}}  {remedy}" for video, reason, remedy in rows]
    more = len(failures) - MAX_LISTED_FAILURES
    return "\n".join(
        [*lines, f"... and {more} more" + (f", in {all_are_in}" if all_are_in else "")] if more > 0 else lines
    )
