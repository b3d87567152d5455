"""The learning rate of each micro-step: a linear warm-up, then half a cosine with one value per epoch.

A micro-step is one batch; the optimizer steps once every `accumulate` micro-steps, with the rate of the last of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from calce_jax.config import Behaviour


def learning_rate(
    step: Any,
    *,
    steps_per_epoch: int,
    epochs: int,
    peak: float,
    floor: float,
    warmup_from: float = 1e-8,
    warmup_steps: int,
    behaviour: Behaviour = "default",
    first_step: int = 0,
) -> Any:
    """Return the learning rate of a micro-step.

    The rate rises linearly from `warmup_from` to `peak` over `warmup_steps` micro-steps, which may span several epochs.
    After that it is constant within an epoch: `floor + (peak - floor) (1 + cos(pi epoch / epochs)) / 2`.

    Under "reference" warm-up steps are counted as by the original's scheduler, which multiplies the epoch by the
    largest step index that it has met instead of by the number of steps. So an epoch counts one step less; and in the
    epoch where a process starts, that index is the current one, so a run that is resumed in epoch E warms up again,
    E + 1 times as fast.

    Args:
      step: micro-steps before this one, since the start of training; an int or an integer array of any shape.
      steps_per_epoch: micro-steps in an epoch.
      epochs: epochs in the whole run.
      peak, floor: the rates at the two ends of the cosine.
      warmup_from: the rate of the first micro-step.
      warmup_steps: micro-steps of warm-up.
      behaviour: "reference" counts warm-up steps as the original.
      first_step: the step at which this process started; read under "reference" alone.

    Returns:
      The rate in the shape of `step`: float32 for a jax array, otherwise float64 (a Python float for an int).
    """
    on_device = isinstance(step, jax.Array)
    xp, dtype = (jnp, jnp.float32) if on_device else (np, np.float64)
    epoch, step_in_epoch = step // steps_per_epoch, step % steps_per_epoch
    if behaviour == "default":
        warmup_step = step
    else:
        max_step_in_epoch = xp.where(epoch == first_step // steps_per_epoch, step_in_epoch, steps_per_epoch - 1)
        warmup_step = epoch * max_step_in_epoch + step_in_epoch
    warmup_rate = warmup_from + (peak - warmup_from) * xp.asarray(warmup_step, dtype) / max(warmup_steps, 1)
    cosine_rate = floor + (peak - floor) * 0.5 * (1.0 + xp.cos(np.pi * xp.asarray(epoch, dtype) / epochs))
    rate = xp.where(warmup_step < warmup_steps, warmup_rate, cosine_rate)
    return rate if on_device or np.ndim(step) else float(rate)
