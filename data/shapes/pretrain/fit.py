"""Train some parameters of a module with AdamW on a stream of batches."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
from absl import logging
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float


def fit(
    name: str,
    module: Any,
    trained_names: tuple[str, ...],
    batches: Iterator[Any],
    loss: Callable[[Any, Any], Float[Array, ""]],
    *,
    peak_learning_rate: float,
    steps: int,
) -> None:
    """Train `module` in place; the learning rate warms up and then decays along a cosine.

    Args:
      name: of the stage, for the log.
      module: first argument of `loss`.
      trained_names: submodules whose parameters are trained, by a name in their path.
      batches: `steps` batches.
      loss: (module, batch) to the loss.
      peak_learning_rate: after the warm-up.
      steps: of the schedule.
    """
    trainable = nnx.All(nnx.Param, nnx.Any(*map(nnx.PathContains, trained_names)))
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, peak_learning_rate, max(steps // 20, 1), steps, peak_learning_rate / 50
    )
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01))
    optimizer = nnx.Optimizer(module, adam, wrt=trainable)

    @nnx.jit
    def step(module: Any, optimizer: nnx.Optimizer, batch: Any) -> Float[Array, ""]:
        value, gradients = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, trainable))(module, batch)
        optimizer.update(module, gradients)
        return value

    # Batches are split over all devices; on a CPU these may be simulated, one for each core.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    nnx.update((module, optimizer), jax.device_put(nnx.state((module, optimizer)), NamedSharding(mesh, P())))
    batch_sharding = NamedSharding(mesh, P("data"))
    start_time, losses = time.monotonic(), []
    for number, batch in enumerate(batches, 1):
        losses.append(step(module, optimizer, jax.device_put(batch, batch_sharding)))
        if number % 50 == 0 or number == steps:
            mean = float(np.mean(jax.device_get(losses)))
            losses = []
            logging.info(
                "%s: step %d of %d, loss %.3f, %.0f s", name, number, steps, mean, time.monotonic() - start_time
            )
