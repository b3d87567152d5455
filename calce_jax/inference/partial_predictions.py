"""Predictions that are still being written: `OUT.part`, and beside it `OUT.part.json`, which says what makes them.

The lines of an interrupted run are continued only by what made them; whatever else is found there is started anew.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from calce_jax.input_pipeline.dataset import Query
from calce_jax.moments.predictions import PredictionError
from calce_jax.storage.atomic_files import write_atomic

# A config can differ in every field; more than these help no one.
SHOWN_DIFFERENCES = 8
SHOWN_LETTERS = 40


class PartialPredictions:
    """The unfinished file of one output; one process at a time may hold it.

    Args:
      out: the finished file.
      queries: all that are asked, in the order of the lines.

    Attributes:
      path: `OUT.part`.
    """

    def __init__(self, out: str | Path, queries: Sequence[Query]):
        self.out, self.queries = Path(out), queries
        self.path = self.out.with_name(f"{self.out.name}.part")
        self._about = self.out.with_name(f"{self.out.name}.part.json")

    def resume(self, made_of: Mapping[str, Any], batch: int) -> int:
        """Cut what is there back to whole batches of right answers, or start anew and log why.

        Args:
          made_of: what answers depend on, by name; values that JSON can hold.
          batch: queries of a batch.

        Returns:
          How many queries are answered: all, or a multiple of `batch`.

        Raises:
          OSError: a file cannot be written.
        """
        made_of = json.loads(json.dumps(made_of))
        if self.path.exists() and self.path.stat().st_size:
            reason = _differences(self._about, made_of)
            if not reason:
                return self._cut(batch)
            logging.warning("%s is started anew: %s", self.path, reason)
        # In this order no answer is ever beside a description of something else.
        self.path.unlink(missing_ok=True)
        write_atomic(self._about, json.dumps(made_of, indent=2) + "\n")
        return 0

    def finish(self) -> None:
        """Give the file its name if it holds exactly one line a query, in their order.

        Raises:
          PredictionError: it does not; names the file, the line and the remedy.
          OSError: it cannot be renamed.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        right = _right_lines(lines, self.queries)
        if not right == len(lines) == len(self.queries):
            expected = f"qid {self.queries[right].qid!r}" if right < len(self.queries) else "nothing"
            raise PredictionError(
                f"{self.path}, line {right + 1}: expected {expected} there, as the line {len(self.queries)} queries "
                "have in their order",
                "something else wrote to this file: remove it and run again",
            )
        os.replace(self.path, self.out)
        self._about.unlink(missing_ok=True)

    def _cut(self, batch: int) -> int:
        lines = self.path.read_bytes().splitlines(keepends=True)
        right = _right_lines(lines, self.queries)
        # The last line may be half a line, or missing its end; anything wrong before it was not written by us.
        if right < len(lines) - 1:
            logging.warning(
                "%s, line %d: damaged, or not the answer to the query of this line; asking goes on before it",
                self.path,
                right + 1,
            )
        done = right if right == len(self.queries) else right - right % batch
        os.truncate(self.path, sum(map(len, lines[:done])))
        return done


def _right_lines(lines: Sequence[bytes], queries: Sequence[Query]) -> int:
    """Count the lines, from the first, that are whole and answer the query of their place."""
    for number, (line, query) in enumerate(zip(lines, queries, strict=False)):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except ValueError:  # no JSON, or no UTF-8
            row = None
        about = (query.qid, query.query, query.video)
        if not isinstance(row, dict) or (row.get("qid"), row.get("query"), row.get("vid")) != about:
            return number
        if not isinstance(row.get("pred_relevant_windows"), list):
            return number
    return min(len(lines), len(queries))


def _differences(about: Path, made_of: Mapping[str, Any]) -> str:
    """Say in what a file's description differs from another; "" where it does not."""
    try:
        there = json.loads(about.read_bytes())
    except FileNotFoundError:
        return f"what made it is unknown, there is no {about}"
    except ValueError as error:
        return f"what made it is unknown, {about} is no JSON ({error})"
    if not isinstance(there, dict):
        return f"what made it is unknown, {about} is no JSON object"
    differing = [
        f"{name}: {_shown(there, name)} there, {_shown(made_of, name)} here"
        for name in sorted(there.keys() | made_of.keys())
        if (name in there, there.get(name)) != (name in made_of, made_of.get(name))
    ]
    more = [f"and {len(differing) - SHOWN_DIFFERENCES} more"] if len(differing) > SHOWN_DIFFERENCES else []
    return "; ".join(differing[:SHOWN_DIFFERENCES] + more)


def _shown(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "nothing"
    return text if len(text) <= SHOWN_LETTERS else f"{text[:SHOWN_LETTERS]}..."
