"""Counts of row flags: rows whose text, captions or windows did not fit the shapes of a batch."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Int

from calce_jax.text.text_row import RowFlag

MAX_LISTED_QUERIES = 5


class RowFlagCounter:
    """Collects the rows of each `RowFlag`.

    Attributes:
      rows: indices into the queries table, by flag.
    """

    def __init__(self):
        self.rows: dict[RowFlag, set[int]] = {}

    def add(self, rows: Int[np.ndarray, " B"], row_flags: Int[np.ndarray, " B"]) -> None:
        """Add the rows of a host batch; a row that is added again, in a later epoch, counts once.

        Args:
          rows: indices into the queries table.
          row_flags: bits of `RowFlag`.
        """
        for row, bits in zip(rows, row_flags, strict=True):
            for flag in RowFlag(int(bits)):
                self.rows.setdefault(flag, set()).add(int(row))

    def summary_lines(self, query_ids_of: Callable[[np.ndarray], list[str]]) -> list[str]:
        """Return a line for each flag, most frequent first: "query truncated: 2 queries (q4, q17)".

        Args:
          query_ids_of: turns rows of the queries table into query ids.
        """
        lines = []
        for flag, rows in sorted(self.rows.items(), key=lambda item: (-len(item[1]), item[0])):
            names = query_ids_of(np.array(sorted(rows)[:MAX_LISTED_QUERIES]))
            names += ["..."] if len(rows) > MAX_LISTED_QUERIES else []
            noun = "query" if len(rows) == 1 else "queries"
            lines.append(f"{flag.describe()[0]}: {len(rows)} {noun} ({', '.join(names)})")
        return lines
