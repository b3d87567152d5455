"""What the original leaves to chance when it selects frames, while training and in evaluation alike.

B batch, T frames of a padded video, E draws.
"""

import jax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from calce_jax.batch import AnyArray
from calce_jax.models.keyframes.compress import draw_removal_numbers


@struct.dataclass
class ReferenceNoise:
    """Numbers in [0, 1); see `dpc_knn` and `compress` for what they decide."""

    density_noise: Float[AnyArray, "*B 2 T"]  # of stage 2's two clusterings; stage 1 takes the first
    removal_draws: Float[AnyArray, "*B E 2"]


def draw_reference_noise(key: PRNGKeyArray, rows: Int[Array, " B"], num_frames: int) -> ReferenceNoise:
    """Draw for each row of a batch by its number, so that it meets the same chance in any batch."""

    def draw_row(row: Int[Array, ""]) -> ReferenceNoise:
        noise_key, draws_key = jax.random.split(jax.random.fold_in(key, row))
        return ReferenceNoise(
            density_noise=jax.random.uniform(noise_key, (2, num_frames)),
            removal_draws=draw_removal_numbers(draws_key, 1, num_frames)[0],
        )

    return jax.vmap(draw_row)(rows)
