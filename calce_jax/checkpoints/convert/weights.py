"""The lazily read weights of a model, as passed from the sources of a conversion to its target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert.state_dict import ConversionError, LazyArray
from calce_jax.checkpoints.convert.writer import cast_floating
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.structure import param_label

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Weights:
    """Weights by their names in a model without adapters; adapters are "t5/.../a" and "t5/.../b".

    Attributes:
      base: all weights without adapters, as training starts from them.
      trained: adapters, projections and `ln_vision` of the sources that have them; they override `base`.
      model_config: of the model, with adapters.
      origin: the sources, as on the command line.
      file: the file that holds exactly `base`, or None.
    """

    base: Mapping[str, LazyArray]
    trained: Mapping[str, LazyArray]
    model_config: CalceConfig
    origin: str
    file: Path | None = None

    def cast_frozen(self, dtype: np.dtype) -> "Weights":
        """Return the weights with the frozen ones cast to `dtype`; trainable weights keep their dtype."""
        frozen = {name: leaf for name, leaf in self.base.items() if is_frozen(name)}
        return replace(self, base={**self.base, **cast_floating(frozen, dtype)}, file=None)

    def trainable_params(self) -> dict[str, LazyArray]:
        """Return all weights that CALCE trains, in float32, from `trained` where it has them, else from `base`.

        Raises:
          ConversionError: `trained` is empty.
        """
        if not self.trained:
            raise ConversionError(["the sources hold no adapters; add calce:PATH, mrblip:PATH, or orbax:PATH of a run"])
        merged = {**self.base, **self.trained}
        return cast_floating({name: merged[name] for name in trainable_param_shapes(self.model_config)}, FLOAT32)

    def merge_lora(self) -> dict[str, LazyArray]:
        """Return the weights with the adapters merged into their layers; every weight keeps its dtype."""
        lora, weights = self.model_config.lora, {**self.base}
        for name, leaf in self.trained.items():
            if not name.endswith(("/a", "/b")):
                weights[name] = leaf
            elif lora is not None and name.endswith("/a"):
                layer, kernel = name.removesuffix("/a"), weights[f"{name.removesuffix('/a')}/kernel"]
                adapter = (leaf, self.trained[f"{layer}/b"])
                weights[f"{layer}/kernel"] = _merge_lora_kernel(kernel, *adapter, lora.alpha / lora.rank)
        return weights


def is_frozen(name: str) -> bool:
    """Return whether CALCE does not train a weight."""
    return param_label(tuple(name.split("/"))) == "frozen"


def base_param_shapes(model_config: CalceConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of every weight of a model without adapters."""
    return _abstract_params(replace(model_config, lora=None))


def trainable_param_shapes(model_config: CalceConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return shape and dtype of every weight that CALCE trains: adapters, projections and `ln_vision`."""
    return {name: leaf for name, leaf in _abstract_params(model_config).items() if not is_frozen(name)}


def as_lazy(array: np.ndarray) -> LazyArray:
    """Wrap an array in memory."""
    return LazyArray(array.shape, array.dtype, lambda: array)


@cache
def _abstract_params(model_config: CalceConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return named_leaves(nnx.state(nnx.eval_shape(lambda: Calce(model_config, rngs=nnx.Rngs(0))), nnx.Param))


def _merge_lora_kernel(kernel: LazyArray, a: LazyArray, b: LazyArray, scale: float) -> LazyArray:
    """Return kernel + scale * a @ b, stacked or not, computed in float32, in the kernel's dtype."""

    def read() -> np.ndarray:
        merged = kernel.read().astype(FLOAT32)
        merged += np.matmul(a.read(), b.read()) * np.float32(scale)
        return merged.astype(kernel.dtype, copy=False)

    return LazyArray(kernel.shape, kernel.dtype, read)
