"""Unfinished predictions: `OUT.part`, and `OUT.part.json`, which holds what the predictions depend on.

An interrupted job is continued only if everything that the predictions depend on is the same; otherwise the file is
started anew, and the difference is logged.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from calce_jax.input_pipeline.example import Query
from calce_jax.moments.predictions import Prediction, PredictionError, read_predictions
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.file_names import fit_name

# In messages: differing inputs, and characters of each value.
MAX_SHOWN_DIFFERENCES = 8
MAX_SHOWN_CHARACTERS = 40


class PartialPredictions:
    """The unfinished file of an output. The caller holds a lock: only one process may use it at a time.

    Args:
      out: the finished file.
      queries: of the split, in the order of the lines.

    Attributes:
      out, queries: as given.
      path: `OUT.part`.
    """

    def __init__(self, out: str | Path, queries: Sequence[Query]):
        self.out, self.queries = Path(out), queries
        self.path = self.out.with_name(fit_name(self.out.name, ".part"))
        self._inputs_path = self.out.with_name(fit_name(self.out.name, ".part.json"))

    def resume(self, inputs: Mapping[str, Any], batch_size: int) -> int:
        """Truncate the file to complete batches of valid lines; or, if the inputs differ, remove it and log why.

        Args:
          inputs: what the predictions depend on, by name; JSON values.
          batch_size: queries of a batch.

        Returns:
          The number of valid lines: all, or a multiple of `batch_size`.

        Raises:
          OSError: a file cannot be written.
        """
        inputs = json.loads(json.dumps(inputs))
        if self.path.exists() and self.path.stat().st_size:
            reason = _diff_inputs(self._inputs_path, inputs)
            if not reason:
                return self._truncate_to_whole_batches(batch_size)
            logging.warning("%s is started anew: %s", self.path, reason)
        # In this order there are never lines beside inputs of other predictions.
        self.path.unlink(missing_ok=True)
        write_atomic(self._inputs_path, json.dumps(inputs, indent=2) + "\n")
        return 0

    def read(self) -> list[Prediction]:
        """Return the predictions, one for each query, in their order.

        Raises:
          PredictionError: the file has not exactly one line per query; names the file, the line and the remedy.
          OSError: it cannot be read.
        """
        lines = self.path.read_bytes().splitlines(keepends=True)
        num_valid = _count_valid_lines(lines, self.queries)
        if not num_valid == len(lines) == len(self.queries):
            expected = f"qid {self.queries[num_valid].qid!r}" if num_valid < len(self.queries) else "no such line"
            raise PredictionError(
                f"{self.path}, line {num_valid + 1}: expected {expected}, since the file must have one line for each "
                f"of the {len(self.queries)} queries in their order",
                "something else wrote to this file: remove it and run again",
            )
        return read_predictions(self.path)

    def finish(self) -> None:
        """Rename the file, of which `read` has returned the predictions, to the finished one.

        Raises:
          OSError: it cannot be renamed.
        """
        os.replace(self.path, self.out)
        self._inputs_path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the unfinished file, if there is one.

        Raises:
          OSError: it cannot be removed.
        """
        self.path.unlink(missing_ok=True)
        self._inputs_path.unlink(missing_ok=True)

    def _truncate_to_whole_batches(self, batch_size: int) -> int:
        lines = self.path.read_bytes().splitlines(keepends=True)
        num_valid = _count_valid_lines(lines, self.queries)
        # An interruption can leave the last line incomplete; an invalid line before it has another cause.
        if num_valid < len(lines) - 1:
            logging.warning(
                "%s, line %d: damaged, or not the answer to the query of this line; continuing before it",
                self.path,
                num_valid + 1,
            )
        num_lines = num_valid if num_valid == len(self.queries) else num_valid - num_valid % batch_size
        os.truncate(self.path, sum(map(len, lines[:num_lines])))
        return num_lines


def _count_valid_lines(lines: Sequence[bytes], queries: Sequence[Query]) -> int:
    """Count the lines from the first that are complete and answer the query at their position."""
    for number, (line, query) in enumerate(zip(lines, queries, strict=False)):
        try:
            row = json.loads(line) if line.endswith(b"\n") else None
        except (ValueError, RecursionError):  # no JSON, or no UTF-8
            row = None
        expected = (query.qid, query.query, query.video)
        if not isinstance(row, dict) or (row.get("qid"), row.get("query"), row.get("vid")) != expected:
            return number
        if not isinstance(row.get("pred_relevant_windows"), list):
            return number
    return min(len(lines), len(queries))


def _diff_inputs(path: Path, inputs: Mapping[str, Any]) -> str:
    """Return in what the inputs in a file ("there") differ from others ("here"), for a message; "" if they do not."""
    try:
        saved = json.loads(path.read_bytes())
    except FileNotFoundError:
        return f"its inputs are unknown: {path} is missing"
    except (ValueError, RecursionError) as error:
        return f"its inputs are unknown: {path} is not JSON ({error})"
    if not isinstance(saved, dict):
        return f"its inputs are unknown: {path} is not a JSON object"
    lines = [
        f"{name}: {_format_value(saved, name)} there, {_format_value(inputs, name)} here"
        for name in sorted(saved.keys() | inputs.keys())
        if (name in saved, saved.get(name)) != (name in inputs, inputs.get(name))
    ]
    more = [f"and {len(lines) - MAX_SHOWN_DIFFERENCES} more"] if len(lines) > MAX_SHOWN_DIFFERENCES else []
    return "; ".join(lines[:MAX_SHOWN_DIFFERENCES] + more)


def _format_value(values: Mapping[str, Any], name: str) -> str:
    text = json.dumps(values[name]) if name in values else "nothing"
    return text if len(text) <= MAX_SHOWN_CHARACTERS else f"{text[:MAX_SHOWN_CHARACTERS]}..."
