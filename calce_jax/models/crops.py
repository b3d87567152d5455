"""Random crops on the device: a rectangle of every clip, resized to a square by two matrix products a frame.

The host draws the rectangles (`calce_jax.input_pipeline.augment`) and hands over whole frames.

Dimensions: B clips, T frames, Y X pixels of the input, S pixels of a side of the output, N input and M output pixels
along one axis.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from calce_jax.config import Behaviour

BICUBIC_A = -0.75  # the free parameter of the bicubic kernel, PyTorch's choice


def crop_and_resize(
    frames: UInt8[Array, "B T Y X 3"], crop: Int[Array, "B 4"], size: int, behaviour: Behaviour = "default"
) -> UInt8[Array, "B T S S 3"]:
    """Crop every frame of a clip to the same rectangle, and resize it to a square, bicubic without antialiasing.

    Frames are computed one after the other, so that no more than one of each clip is float32 at a time. A rectangle
    without pixels, that of a padding row, gives black frames.

    Args:
      frames: clips.
      crop: top, left, height and width in pixels, inside the frame.
      size: S.
      behaviour: bicubic interpolation overshoots near edges, to values below 0 and above 255. By default values are
        rounded and clipped; "reference" truncates and wraps as the original's cast: 258.4 to 2, -11.6 to 245.
    """
    rows, columns = resize_weights(crop, frames.shape[2], frames.shape[3], size)

    def crop_frame(frame: UInt8[Array, "B Y X 3"]) -> UInt8[Array, "B S S 3"]:
        resized = resize(frame, rows, columns)
        if behaviour == "reference":
            return resized.astype(jnp.int32).astype(jnp.uint8)
        return jnp.rint(resized.clip(0, 255)).astype(jnp.uint8)

    return jax.lax.map(crop_frame, frames.swapaxes(0, 1)).swapaxes(0, 1)


def resize_weights(
    crop: Int[Array, "B 4"], height: int, width: int, size: int
) -> tuple[Float[Array, "B S Y"], Float[Array, "B S X"]]:
    """Return the matrices of `resize` for rectangles of frames of `height` (Y) times `width` (X) pixels."""
    top, left, crop_height, crop_width = crop.T
    return bicubic_weights(top, crop_height, height, size), bicubic_weights(left, crop_width, width, size)


def resize(
    frame: UInt8[Array, "B Y X 3"], rows: Float[Array, "B S Y"], columns: Float[Array, "B S X"]
) -> Float[Array, "B S S 3"]:
    """Return one frame of each clip, resized, before the conversion to uint8 in `crop_and_resize`; float32."""
    # Matrix units of GPUs and TPUs would round the pixels to fewer bits.
    highest = jax.lax.Precision.HIGHEST
    resized_rows = jnp.einsum("bsy,byxc->bsxc", rows, frame.astype(jnp.float32), precision=highest)
    return jnp.einsum("bzx,bsxc->bszc", columns, resized_rows, precision=highest)


def bicubic_weights(
    start: Int[Array, " B"], length: Int[Array, " B"], in_size: int, out_size: int
) -> Float[Array, "B M N"]:
    """Return the matrices that resample pixels `start` to `start + length` of `in_size` to `out_size` pixels; float32.

    Each row has four bicubic weights. Positions are pixel centres; beyond the border of the interval its outermost
    pixel is repeated.
    """
    start, length = start[:, None], length[:, None]
    # The position (m + 1/2) length / out_size - 1/2 of output pixel m, times 2 out_size: exact in integers, where
    # float32 would be off by 1e-5 pixels.
    position = (2 * jnp.arange(out_size)[None] + 1) * length - out_size
    first, remainder = jnp.divmod(position, 2 * out_size)
    fraction = remainder.astype(jnp.float32) / (2 * out_size)
    pixels = jnp.arange(in_size)[None, None]
    matrix = jnp.zeros((*position.shape, in_size), jnp.float32)
    for tap, weight in zip(range(-1, 3), _bicubic_taps(fraction), strict=True):
        sample = start + jnp.clip(first + tap, 0, length - 1)
        matrix += jnp.where(sample[..., None] == pixels, weight[..., None], 0.0)
    return matrix


def _bicubic_taps(t: Float[Array, "B M"]) -> tuple[Float[Array, "B M"], ...]:
    """Return the weights of the pixels at -1, 0, 1 and 2 for the position `t` (0 to 1).

    They are Keys' kernel in factors, since the sums of its usual form lose four bits.
    """
    a, rest = BICUBIC_A, 1 - t
    near, far = (1 - x * x * ((a + 3) - (a + 2) * x) for x in (t, rest))
    return a * t * rest * rest, near, far, a * t * t * rest
