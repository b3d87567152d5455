"""The structure of a model and its parameters: which are trained, and as nested dicts of arrays.

Dicts, so that weights are read, placed and passed to compiled programs without the modules they belong to.
`nnx.merge(graph, trainable, frozen)` makes a model of them.
"""

from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PRNGKeyArray

from calce_jax.distributed.param_names import Params
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig

TRAINABLE_MODULES = ("ln_vision", "query_proj", "t5_proj")


def param_label(path: tuple[str, ...]) -> Literal["trainable", "frozen"]:
    """Return the label of the parameter at `path`; trainable are adapters, both projections and `ln_vision`.

    With `CalceConfig.ln_vision` "frozen" it is still labelled trainable, but has no gradient and no weight decay, so it
    does not change.
    """
    return "trainable" if path[0] in TRAINABLE_MODULES or path[-1] in ("a", "b") else "frozen"


def split_params(model: Calce, frozen_dtype: str = "bfloat16") -> tuple[Any, Params, Params]:
    """Split a model into graph, trainable parameters (float32) and frozen parameters (cast to `frozen_dtype`)."""

    def is_trainable(path: tuple[Any, ...], _: object) -> bool:
        return param_label(tuple(map(str, path))) == "trainable"

    graph, *states = nnx.split(model, is_trainable, ...)
    trainable, frozen = map(nnx.to_pure_dict, states)
    return graph, trainable, jax.tree.map(lambda a: a.astype(jnp.dtype(frozen_dtype)), frozen)


def draw_params(model_config: CalceConfig, frozen_dtype: str, key: PRNGKeyArray) -> tuple[Params, Params]:
    """Return random trainable and frozen parameters, see `split_params`."""
    return split_params(Calce(model_config, rngs=nnx.Rngs(key)), frozen_dtype)[1:]


def count_params(params: Any) -> int:
    """Return the number of parameters in a pytree of arrays, abstract or not."""
    return sum(int(np.prod(a.shape)) for a in jax.tree.leaves(params))


@lru_cache(maxsize=4)
def trace_model(model_config: CalceConfig, frozen_dtype: str) -> tuple[Any, tuple[Params, Params]]:
    """Return the graph definition of a model, and the shapes of its trainables and of its frozen weights.

    Both stages of a search have the same; a trace takes 0.2 s at the tiny size.
    """
    graphs: list[Any] = []

    def split() -> tuple[Params, Params]:
        graph, trainable, frozen = split_params(Calce(model_config, rngs=nnx.Rngs(0)), frozen_dtype)
        graphs.append(graph)
        return trainable, frozen

    abstract = jax.eval_shape(split)
    return graphs[0], abstract
