"""What is scored: one query's predicted windows beside its true ones."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Case:
    """A query to score.

    Attributes:
      qid: the query's id.
      predicted: [start, end] or [start, end, score], best first; seconds.
      truth: the true windows [start, end]; seconds, at least one.
      malformed: whether the answer that the windows were read from could not be used as it stood.
    """

    qid: str | int
    predicted: Sequence[Sequence[int | float]]
    truth: Sequence[Sequence[int | float]]
    malformed: bool = False


def by_query(cases: Sequence[Case]) -> list[Case]:
    """Return one case an id, the last where it repeats, at the place of the first."""
    return list({case.qid: case for case in cases}.values())


def joined_by_query(cases: Sequence[Case]) -> list[Case]:
    """Return one case an id, with the windows of all its cases, predicted and true, one after the other."""
    grouped: dict[str | int, list[Case]] = {}
    for case in cases:
        grouped.setdefault(case.qid, []).append(case)
    return [
        Case(
            qid,
            [window for case in group for window in case.predicted],
            [window for case in group for window in case.truth],
            malformed=group[-1].malformed,
        )
        for qid, group in grouped.items()
    ]
