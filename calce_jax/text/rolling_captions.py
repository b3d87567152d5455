"""Rolling captions, as video sites make them by machine: each line again above the next, and alone for a moment.

Read as they stand, every line would be said twice, and the second time when it is long over.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

MAX_HOLD_SECONDS = 0.1  # of an entry that only repeats a line until the next one comes
MAX_ROLLED_LINES = 4  # that stay on the screen


@dataclass(frozen=True)
class Entry:
    """An entry of an .srt file: start and end in seconds, and its lines, none of them empty."""

    start: float
    end: float
    lines: list[str]


def unroll(entries: Sequence[Entry]) -> list[Entry]:
    """Return the entries of rolling captions with every line once, when it is new; other entries unchanged.

    Captions count as rolling if at least half of the entries of several lines begin with the last lines of the one
    before, and if that, or an entry that holds a line for a moment, is found twice.

    Args:
      entries: in order of start.
    """
    pairs = list(pairwise(entries))
    num_rolled = sum(len(entry.lines) > 1 and _num_shared(before, entry) > 0 for before, entry in pairs)
    num_held = sum(_is_held(before, entry) for before, entry in pairs)
    num_several = sum(len(entry.lines) > 1 for _, entry in pairs)
    if not num_rolled or num_rolled + num_held < 2 or 2 * num_rolled < num_several:
        return list(entries)
    return list(_unroll(entries))


def _unroll(entries: Iterable[Entry]) -> list[Entry]:
    unrolled: list[Entry] = []
    before: Entry | None = None
    for entry in entries:
        if before is not None and _is_held(before, entry):
            unrolled[-1] = replace(unrolled[-1], end=max(unrolled[-1].end, entry.end))
        else:
            new = entry.lines[_num_shared(before, entry) :] if before is not None else entry.lines
            unrolled.append(replace(entry, lines=new or entry.lines))
        before = entry
    return unrolled


def _is_held(before: Entry, entry: Entry) -> bool:
    return entry.end - entry.start <= MAX_HOLD_SECONDS and _num_shared(before, entry) == len(entry.lines)


def _num_shared(before: Entry, entry: Entry) -> int:
    """Return how many of the last lines of an entry begin the next one."""
    for count in range(min(len(before.lines), len(entry.lines), MAX_ROLLED_LINES), 0, -1):
        if before.lines[-count:] == entry.lines[:count]:
            return count
    return 0
