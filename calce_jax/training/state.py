"""What changes while training: the step, the trainable parameters, the optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct


@struct.dataclass
class TrainState:
    """A pytree; the frozen parameters travel beside it, because they are neither updated nor saved.

    Fields:
      step: int32 scalar, the micro-steps taken.
      trainable: the parameters that learn, float32, as `nnx.split` gives them.
      opt_state: optax's state, with the gradients gathered since the optimizer's last step.
    """

    step: Any
    trainable: Any
    opt_state: Any


def new_state(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def apply_gradients(
    state: TrainState,
    gradients: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: jax.Array,
) -> TrainState:
    """Take one micro-step.

    Args:
      state: the state before it.
      gradients: of the mean loss of the batch, in the structure of `state.trainable`.
      optimizer: from `make_optimizer`.
      learning_rate: float32 scalar, the rate at `state.step`.
    """
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable, learning_rate=learning_rate)
    return TrainState(state.step + 1, optax.apply_updates(state.trainable, updates), opt_state)
