"""Counting what did not fit: every row tells by its `Note`s, and here they are added up by name."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from calce_jax.text.text_row import Note

SHOWN = 5


class NoteCounter:
    """The rows of the batches seen so far that did not fit in some way."""

    def __init__(self):
        self.rows: dict[Note, set[int]] = {}

    def add(self, rows: Int[np.ndarray, " B"], notes: Int[np.ndarray, " B"]) -> None:
        """Take in what a host batch says. A row that comes again, in a later epoch, counts once."""
        for row, bits in zip(rows, notes, strict=True):
            for note in Note(int(bits)):
                self.rows.setdefault(note, set()).add(int(row))

    def lines(self, queries: Callable[[np.ndarray], list[str]]) -> list[str]:
        """Return a line a kind of note, most frequent first: "query cut: 2 queries (q4, q17)".

        Args:
          queries: turns rows of the queries table into ids.
        """
        lines = []
        for note, rows in sorted(self.rows.items(), key=lambda item: (-len(item[1]), item[0])):
            names = queries(np.array(sorted(rows)[:SHOWN]))
            names += ["..."] if len(rows) > SHOWN else []
            noun = "query" if len(rows) == 1 else "queries"
            lines.append(f"{note.describe()[0]}: {len(rows)} {noun} ({', '.join(names)})")
        return lines
