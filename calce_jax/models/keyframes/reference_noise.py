"""What the original leaves to chance when it selects frames, while training and in evaluation alike.

B batch, T frames of a padded video, E draws.
"""

import jax
from flax import struct
from jaxtyping import Array, Float, Int, PRNGKeyArray

from calce_jax.batch import Data
from calce_jax.models.keyframes.compress import random_draws


@struct.dataclass
class Chance:
    """Numbers in [0, 1); see `dpc_knn` and `compress` for what they decide."""

    noise: Float[Data, "*B 2 T"]  # of stage 2's two clusterings; stage 1 takes the first
    draws: Float[Data, "*B E 2"]


def draw_chance(key: PRNGKeyArray, rows: Int[Array, " B"], frames: int) -> Chance:
    """Draw for each row of a batch by its number, so that it meets the same chance in any batch."""

    def one(row: Int[Array, ""]) -> Chance:
        noise, draws = jax.random.split(jax.random.fold_in(key, row))
        return Chance(noise=jax.random.uniform(noise, (2, frames)), draws=random_draws(draws, 1, frames)[0])

    return jax.vmap(one)(rows)
