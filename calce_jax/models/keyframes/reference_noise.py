"""The random draws of the original's selection, in training and in evaluation.

B batch, T frames of a padded video, E draws.
"""

from dataclasses import dataclass

import jax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from calce_jax.batch import AnyArray
from calce_jax.models.keyframes.compress import draw_removal_numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ReferenceNoise:
    """Uniform draws in [0, 1) for `dpc_knn` and `compress`, of one row (no B) or of a batch."""

    density_noise: Float[AnyArray, "*B 2 T"]  # for the two clusterings of stage 2; stage 1 uses the first
    removal_draws: Float[AnyArray, "*B E 2"]


def draw_reference_noise(key: PRNGKeyArray, rows: Int[Array, " B"], num_frames: int) -> ReferenceNoise:
    """Return draws for each row that depend on `key` and the row's number only, not on the batch."""

    def draw_row(row: Int[Array, ""]) -> ReferenceNoise:
        noise_key, draws_key = jax.random.split(jax.random.fold_in(key, row))
        return ReferenceNoise(
            density_noise=jax.random.uniform(noise_key, (2, num_frames)),
            removal_draws=draw_removal_numbers(draws_key, 1, num_frames)[0],
        )

    return jax.vmap(draw_row)(rows)
