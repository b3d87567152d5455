"""The state of training: step, trainable parameters, optimizer state."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree of what training updates and checkpoints hold; frozen parameters are passed separately.

    Fields:
      step: int32 scalar, micro-steps taken.
      trainable: float32 trainable parameters, nested dicts.
      opt_state: optax's state, with the gradients accumulated since the last optimizer step.
    """

    step: Any
    trainable: Any
    opt_state: Any


def create_train_state(trainable: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """Return the state before the first micro-step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, optimizer.init(trainable))


def apply_gradients(
    state: TrainState,
    gradients: Any,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: jax.Array,
    *,
    finite: jax.Array | bool = True,
) -> TrainState:
    """Apply the gradients of one micro-step, or skip it.

    A skipped micro-step only advances `state.step`, and with it the schedule and the random keys; parameters, Adam's
    moments and counts, and the accumulated gradients stay bit for bit. So an optimizer step always uses `accumulate`
    finite micro-steps; a skipped one delays it by one micro-step.

    Args:
      state: the state before the micro-step.
      gradients: of the mean loss of the batch, in the structure of `state.trainable`.
      optimizer: from `calce_jax.training.optimizer.make_optimizer`.
      learning_rate: float32 scalar, the rate at `state.step`.
      finite: bool scalar, from `is_finite`; False skips the micro-step.
    """
    with jax.named_scope("optimizer"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable, learning_rate=learning_rate)
        trainable = optax.apply_updates(state.trainable, updates)
    # An element-wise selection, not `lax.cond`: it fuses with the update, and donated memory is still reused.
    trainable, opt_state = jax.tree.map(
        lambda new, old: jnp.where(finite, new, old), (trainable, opt_state), (state.trainable, state.opt_state)
    )
    return TrainState(state.step + 1, trainable, opt_state)


def is_finite(loss: jax.Array, gradient_norm: jax.Array) -> jax.Array:
    """Return a bool scalar: whether a micro-step may be applied.

    The global norm is not finite if any gradient is not, or if the sum of their squares overflows, which would also
    overflow Adam's second moment.
    """
    return jnp.isfinite(loss) & jnp.isfinite(gradient_norm)
