"""From which score on a query is taken to happen in a video: measured on queries of which it is known.

The model was never asked about something that does not happen, and always answers. Its best score still tells much: a
threshold that 5 % of the queries that do happen fall below rejects a share of those that do not, which is measured too.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calce_jax.config import ASSETS, packaged_path
from calce_jax.errors import UserError
from calce_jax.moments.metrics.presence import auroc, keeping_threshold
from calce_jax.search.paths import SearchError
from calce_jax.storage.atomic_files import write_atomic

CALIBRATION_FILE = "calibration.json"
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
    """

    threshold: float
    kept: float
    rejected: float
    auroc: float
    num_queries: int


def fit_calibration(present: Sequence[float], absent: Sequence[float]) -> Calibration:
    """Return the threshold that keeps 95 % of the queries that happen.

    Args:
      present: best scores of queries that happen; 0 where nothing was found.
      absent: best scores of queries that do not.

    Raises:
      SearchError: one of the lists is empty.
    """
    if not present or not absent:
        raise SearchError("no queries to calibrate with", "give a split with windows in two videos or more")
    threshold = keeping_threshold(present)
    return Calibration(
        threshold=round(threshold, 6),
        kept=float((np.asarray(present) >= threshold).mean()),
        rejected=float((np.asarray(absent) < threshold).mean()),
        auroc=auroc(present, absent),
        num_queries=len(present) + len(absent),
    )


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
        names = [field.name for field in dataclasses.fields(Calibration)]
        if not isinstance(fields, dict) or sorted(fields) != sorted(names):
            raise ValueError(f"it must have {', '.join(names)}")
        if not all(isinstance(value, (int, float)) for value in fields.values()) or not 0 <= fields["threshold"] <= 1:
            raise ValueError("its values must be numbers, and the threshold from 0 to 1")
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: no calibration: {error}", "remove it, or run `calce calibrate` again") from error
    return Calibration(**fields)
