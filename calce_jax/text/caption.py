"""A caption, apart from the text of a batch: captions are read and searched without importing jax."""

from dataclasses import dataclass

import numpy as np

Number = int | float | np.number


@dataclass(frozen=True)
class Caption:
    """Text spoken from second `start` to second `end`."""

    start: Number
    end: Number
    text: str
