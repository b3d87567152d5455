"""Names, shapes and dtypes of the full-size checkpoints, with ranges of layers written as one entry."""

import json
import re
from pathlib import Path

import jax
import numpy as np

FILE = Path(__file__).with_name("manifests.json")
RANGE = re.compile(r"\{(\d+)\.\.(\d+)(?: by (\d+))?\}")


def manifest(name: str) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the abstract tensors of one checkpoint."""
    entries = json.loads(FILE.read_text())[name]
    return {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for pattern, (shape, dtype) in entries.items()
        for name in expand_ranges(pattern)
    }


def expand_ranges(pattern: str) -> list[str]:
    """Return the names that "layer.{0..2}.x" stands for."""
    if not (range_match := RANGE.search(pattern)):
        return [pattern]
    first, last, step = (int(number or 1) for number in range_match.groups())
    return [pattern.replace(range_match[0], str(layer)) for layer in range(first, last + 1, step)]
