"""The learning rate of every micro-step: a linear warm-up, then a cosine that falls once an epoch.

A micro-step is one batch through the model; the optimizer steps every few of them, with the rate of the last one.
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
    first_epoch: int = 0,
) -> Any:
    """Return the learning rate of a micro-step.

    The rate climbs linearly from `warmup_from` towards `peak` over `warmup_steps` micro-steps, which may reach into
    later epochs. From there on it is constant within an epoch and follows half a cosine over the epochs:
    `floor + (peak - floor) (1 + cos(pi epoch / epochs)) / 2`.

    Under "reference" it counts warm-up steps as the original's scheduler does, which multiplies the epoch by the
    largest step index seen so far rather than by the number of steps. So an epoch counts one step less; and in the
    epoch where a process starts, that index is the current one, so a resumed run warms up again, `first_epoch + 1`
    times as fast.

    Args:
      step: micro-steps taken before this one, since the start of training; an int, or any integer array. On the
        device (a jax array) the rate is float32; otherwise it is computed in float64.
      steps_per_epoch: micro-steps in an epoch.
      epochs: epochs in the whole run.
      peak, floor: the rates at both ends of the cosine.
      warmup_from: the rate of the very first step.
      warmup_steps: micro-steps of warm-up.
      behaviour: whether to count as the original.
      first_epoch: the epoch in which this process started; "default" is a function of the step alone.
    """
    on_device = isinstance(step, jax.Array)
    xp, dtype = (jnp, jnp.float32) if on_device else (np, np.float64)
    epoch, step_in_epoch = step // steps_per_epoch, step % steps_per_epoch
    if behaviour == "default":
        warmup_step = step
    else:
        max_step_in_epoch = xp.where(epoch == first_epoch, step_in_epoch, steps_per_epoch - 1)
        warmup_step = epoch * max_step_in_epoch + step_in_epoch
    warmup_rate = warmup_from + (peak - warmup_from) * xp.asarray(warmup_step, dtype) / max(warmup_steps, 1)
    cosine_rate = floor + (peak - floor) * 0.5 * (1.0 + xp.cos(np.pi * xp.asarray(epoch, dtype) / epochs))
    rate = xp.where(warmup_step < warmup_steps, warmup_rate, cosine_rate)
    return rate if on_device or np.ndim(step) else float(rate)
