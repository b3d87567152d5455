"""What a beam search returns.

Dimensions: B batch, K beams, M longest answer.
"""

from dataclasses import dataclass

import jax
from jaxtyping import Bool, Float, Int

from calce_jax.batch import AnyArray


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamSearchOutput:
    """The K best answers of each sample, best first."""

    tokens: Int[AnyArray, "B K M"]  # without the start token; 0 after the end
    score: Float[AnyArray, "B K"]  # mean log-probability of a token; NEG_INF where there is no answer
    log_probability: Float[AnyArray, "B K"]  # of the whole answer
    is_finished: Bool[AnyArray, "B K"]  # False where the answer was truncated at M tokens
    steps: Int[AnyArray, ""]  # decoder steps taken
