"""Names, shapes and dtypes of published checkpoints, in which one entry stands for a range of layers."""

import json
import re
from pathlib import Path

import jax
import numpy as np

FILE = Path(__file__).with_name("manifests.json")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)(?: by (\d+))?\}")


def manifest(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of the tensors of a checkpoint by name."""
    entries = json.loads(FILE.read_text())[name]
    return {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for pattern, (shape, dtype) in entries.items()
        for name in expand_ranges(pattern)
    }


def expand_ranges(pattern: str) -> list[str]:
    """Return the names for a pattern such as "layer.{0..2}.x" or "layer.{0..10 by 2}.x"."""
    if not (range_match := RANGE.search(pattern)):
        return [pattern]
    first, last, step = (int(number or 1) for number in range_match.groups())
    return [pattern.replace(range_match[0], str(layer)) for layer in range(first, last + 1, step)]
