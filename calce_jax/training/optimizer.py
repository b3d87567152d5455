"""AdamW with the original's weight-decay groups, and gradient accumulation over micro-steps."""

from typing import Any

import jax
import optax

from calce_jax.config import Behaviour, OptimizerConfig
from calce_jax.distributed.param_names import key_path_names

NO_DECAY_NAMES = ("bias", "scale")


def has_weight_decay(path: tuple[str, ...]) -> bool:
    """Return whether a parameter decays: all except biases and the scale of `ln_vision`.

    Args:
      path: names of the parameter, such as ("t5", "lm_head", "b").
    """
    return path[-1] not in NO_DECAY_NAMES


def make_optimizer(config: OptimizerConfig, behaviour: Behaviour = "default") -> optax.GradientTransformationExtraArgs:
    """Build the optimizer.

    Its `update` takes the learning rate of the micro-step as the keyword `learning_rate`, a float32 scalar. Updates are
    zero except at every `config.accumulate`-th micro-step, whose learning rate is used. Accumulation continues across
    epochs. Gradients are averaged; under "reference" they are summed, as in the original, which Adam's normalisation
    nearly cancels.
    """
    inner: Any = optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, _decay_mask),
        _scale_by_learning_rate(),
    )
    if config.accumulate > 1:
        inner = optax.MultiSteps(inner, config.accumulate, use_grad_mean=behaviour == "default")

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        # optax mixes integer counters with floats, which strict promotion rejects.
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params, **extra)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _decay_mask(params: optax.Params) -> optax.Params:
    return jax.tree_util.tree_map_with_path(lambda keys, _: has_weight_decay(key_path_names(keys)), params)


def _scale_by_learning_rate() -> optax.GradientTransformationExtraArgs:
    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        del params
        return jax.tree.map(lambda u: -extra["learning_rate"] * u, updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
