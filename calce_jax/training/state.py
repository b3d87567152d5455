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


def create_train_state(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def apply_gradients(
    state: TrainState,
    gradients: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: jax.Array,
    *,
    finite: jax.Array | bool = True,
) -> TrainState:
    """Take one micro-step, or skip it.

    A skipped micro-step advances `state.step`, and with it the schedule and the random numbers, and changes no other
    bit: not the parameters, not Adam's moments and counts, not the gradients accumulated so far. An optimizer step thus
    always gathers `accumulate` finite micro-steps; a skipped one delays it by one micro-step.

    Args:
      state: the state before it.
      gradients: of the mean loss of the batch, in the structure of `state.trainable`.
      optimizer: from `make_optimizer`.
      learning_rate: float32 scalar, the rate at `state.step`.
      finite: bool scalar, from `is_finite`; False skips the micro-step.
    """
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable, learning_rate=learning_rate)
    trainable = optax.apply_updates(state.trainable, updates)
    # A selection of each element, not `lax.cond`: it fuses with the update, and donated memory is still reused.
    trainable, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (trainable, opt_state), (state.trainable, state.opt_state)
    )
    return TrainState(state.step + 1, trainable, opt_state)


def is_finite(loss: jax.Array, gradient_norm: jax.Array) -> jax.Array:
    """Return a bool scalar: whether a micro-step may be applied.

    The norm is not finite where any gradient is not, and where their squares overflow, which Adam's second moment sums.
    """
    return jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
