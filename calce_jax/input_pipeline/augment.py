"""Draws of the augmentation of training clips: one random crop per clip. The device cuts it out (`models/crops.py`)."""

import math
from typing import NamedTuple

import numpy as np

AREA_SCALE = (0.5, 1.0)  # share of the area
ASPECT_RATIO = (3 / 4, 4 / 3)  # width to height
MAX_ATTEMPTS = 10


class Crop(NamedTuple):
    """A rectangle, in pixels."""

    top: int
    left: int
    height: int
    width: int


def sample_crop(rng: np.random.Generator, height: int, width: int) -> Crop:
    """Draw a crop as torchvision's RandomResizedCrop does: uniform area, log-uniform aspect ratio, uniform position.

    If `MAX_ATTEMPTS` draws do not fit, it is the central crop whose aspect ratio is nearest to that of the image.
    """
    for _ in range(MAX_ATTEMPTS):
        area = height * width * rng.uniform(*AREA_SCALE)
        ratio = math.exp(rng.uniform(math.log(ASPECT_RATIO[0]), math.log(ASPECT_RATIO[1])))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Crop(int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w)
    ratio = min(max(width / height, ASPECT_RATIO[0]), ASPECT_RATIO[1])
    w, h = min(width, round(height * ratio)), min(height, round(width / ratio))
    return Crop((height - h) // 2, (width - w) // 2, h, w)
