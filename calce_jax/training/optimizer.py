"""AdamW as the original groups it, stepping once every few micro-steps."""

from typing import Any

import jax
import optax

from calce_jax.config import Behaviour, OptimizerConfig
from calce_jax.distributed.param_names import key_path_names

NO_DECAY_NAMES = ("bias", "scale")


def has_weight_decay(path: tuple[str, ...]) -> bool:
    """Tell whether a parameter decays: all do but biases and the scale of `ln_vision`."""
    return path[-1] not in NO_DECAY_NAMES


def make_optimizer(config: OptimizerConfig, behaviour: Behaviour = "default") -> optax.GradientTransformationExtraArgs:
    """Build the optimizer; its `update` takes the micro-step's rate as the keyword `learning_rate`, a float32 scalar.

    It returns zero updates but at every `config.accumulate`-th micro-step, whose rate then holds for all of them.
    An epoch may end in between: the gradients gathered so far enter the next epoch's first step. They are averaged;
    under "reference" they are summed, as the original does, which Adam's own scaling all but undoes.
    """
    inner: Any = optax.chain(
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, _decay_mask),
        _scale_by_learning_rate(),
    )
    if config.accumulate > 1:
        inner = optax.MultiSteps(inner, config.accumulate, use_grad_mean=behaviour == "default")

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        # optax mixes integer counters with floats and so needs the ordinary promotion rules.
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
