"""Items of a long job that failed, and the table in which a person reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

# More rows than this help no one; failures.jsonl has them all.
SHOWN_FAILURES = 40


@dataclass(frozen=True)
class Failure:
    """A video, or one query about it, that was left out."""

    video: str
    reason: str
    remedy: str


def failure_table(failures: Sequence[Failure]) -> str:
    """Return the failures as a table for people, in columns."""
    rows = [("video", "what is wrong", "what to do")]
    rows += [(failure.video, failure.reason, failure.remedy) for failure in failures[:SHOWN_FAILURES]]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{video:<{widths[0]}}  {reason:<{widths[1]}}  {remedy}" for video, reason, remedy in rows]
    more = len(failures) - SHOWN_FAILURES
    return "\n".join([*lines, f"... and {more} more, in failures.jsonl"] if more > 0 else lines)
