"""From which score on a query is taken to happen in a video: measured on queries of which it is known.

The model was never asked about something that does not happen, and always answers. Its best score still tells much: a
threshold that 5 % of the queries that do happen fall below rejects a share of those that do not, which is measured too.

A score is no probability either: 0.8 does not mean right four times in five. How probably a moment of this score is
right is read from a curve. `calce_jax.search.fit_calibration` fits both.
"""

import dataclasses
import itertools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from calce_jax.config import ASSETS, packaged_path
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic

CALIBRATION_FILE = "calibration.json"
CURVE = ("scores", "probabilities")  # fields that earlier versions did not write
TINY_CALIBRATION = f"{ASSETS}tiny/{CALIBRATION_FILE}"


@dataclass(frozen=True)
class Calibration:
    """A threshold, and what it does to the queries that it was measured on.

    Attributes:
      threshold: a query whose best moment has a lower score probably does not happen in the video.
      kept: share of the queries that happen with at least this score.
      rejected: share of those that do not happen with a lower one.
      auroc: probability that one that happens has a higher score than one that does not.
      num_queries: of both kinds together.
      scores, probabilities: of the curve, ascending; empty in files of earlier versions, which have no curve.
    """

    threshold: float
    kept: float
    rejected: float
    auroc: float
    num_queries: int
    scores: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)

    def probability(self, score: float) -> float | None:
        """Return how probably a moment of this score is right, in [0, 1]; None without a curve."""
        if not self.scores:
            return None
        return round(float(np.interp(score, self.scores, self.probabilities)), 3)


def calibration_path(checkpoint: str | Path | None) -> Path:
    """Return the file of the calibration of a checkpoint folder, or that of the tiny model; there may be none."""
    return packaged_path(TINY_CALIBRATION) if checkpoint is None else Path(checkpoint) / CALIBRATION_FILE


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write a calibration as JSON."""
    write_atomic(path, json.dumps(asdict(calibration), indent=2) + "\n")


def read_calibration(path: Path) -> Calibration | None:
    """Return what `write_calibration` wrote, or None if there is no file.

    Raises:
      UserError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        names = {member.name for member in dataclasses.fields(Calibration)}
        if not isinstance(fields, dict) or not names - set(CURVE) <= set(fields) <= names:
            raise ValueError(f"it must have {', '.join(sorted(names))}")
        curve = [fields.get(name, []) for name in CURVE]
        numbers = [value for name, value in fields.items() if name not in CURVE]
        if not all(isinstance(value, (int, float)) for value in numbers) or not 0 <= fields["threshold"] <= 1:
            raise ValueError("its values must be numbers, and the threshold from 0 to 1")
        if not all(_is_rising(values) for values in curve) or len(curve[0]) != len(curve[1]):
            raise ValueError(f"{' and '.join(CURVE)} must be ascending numbers from 0 to 1, as many of each")
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path}: no calibration: {error}", "remove it, or run `calce calibrate` again") from error
    return Calibration(**fields)


def _is_rising(values: Any) -> bool:
    """Return whether these are ascending numbers in [0, 1]."""
    if not isinstance(values, list) or not all(isinstance(value, (int, float)) for value in values):
        return False
    return all(a <= b for a, b in itertools.pairwise([0, *values, 1]))
