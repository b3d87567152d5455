"""Crops as the host computed them before the device did, by numpy with float64 positions: the oracle of `models.crops`.

Dimensions: T frames, H W pixels of the input, S pixels of a side of the output, N input pixels along one axis.
"""

import numpy as np
from jaxtyping import Float32, UInt8

from calce_jax.config import Behaviour
from calce_jax.input_pipeline.augment import Crop

BICUBIC_A = -0.75


def crop_and_resize(
    frames: UInt8[np.ndarray, "T H W 3"],
    crop: Crop,
    size: int,
    behaviour: Behaviour = "default",
) -> UInt8[np.ndarray, "T S S 3"]:
    """Crop every frame to the same rectangle, and resize it to a square, bicubic without antialiasing.

    Args:
      frames: a clip.
      crop: the rectangle.
      size: S.
      behaviour: bicubic interpolation overshoots near edges, to values below 0 and above 255. By default values are
        rounded and clipped; "reference" truncates and wraps as the original's cast: 258.4 to 2, -11.6 to 245.
    """
    resized = bicubic_resize(frames, crop, size)
    if behaviour == "reference":
        return resized.astype(np.int32).astype(np.uint8)
    return np.rint(resized.clip(0, 255)).astype(np.uint8)


def bicubic_resize(frames: UInt8[np.ndarray, "T H W 3"], crop: Crop, size: int) -> Float32[np.ndarray, "T S S 3"]:
    """Return the crop resized, before the conversion to uint8 in `crop_and_resize`."""
    top, left, height, width = crop
    cropped = frames[:, top : top + height, left : left + width]
    # With the colours as planes both resizes are large matrix products.
    planes = np.ascontiguousarray(cropped.transpose(0, 3, 1, 2), dtype=np.float32)
    rows = bicubic_weights(height, size) @ planes
    return (rows @ bicubic_weights(width, size).T).transpose(0, 2, 3, 1)


def bicubic_weights(in_size: int, out_size: int) -> Float32[np.ndarray, "S N"]:
    """Return the matrix that resamples `in_size` pixels to `out_size`: four bicubic weights in each row.

    Positions are pixel centres; beyond the border the outermost pixel is repeated.
    """
    position = (np.arange(out_size) + 0.5) * (in_size / out_size) - 0.5
    first = np.floor(position)
    matrix = np.zeros((out_size, in_size))
    for tap in range(-1, 3):
        sample = np.clip(first + tap, 0, in_size - 1).astype(np.int64)
        np.add.at(matrix, (np.arange(out_size), sample), _bicubic_kernel(np.abs(position - first - tap)))
    return matrix.astype(np.float32)


def _bicubic_kernel(x: np.ndarray) -> np.ndarray:
    near = ((BICUBIC_A + 2) * x - (BICUBIC_A + 3)) * x * x + 1
    far = ((BICUBIC_A * x - 5 * BICUBIC_A) * x + 8 * BICUBIC_A) * x - 4 * BICUBIC_A
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
