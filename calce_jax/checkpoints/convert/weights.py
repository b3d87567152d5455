"""All weights of a model, none of them in memory: what passes from the sources of a conversion to its target."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert.state_dict import ConversionError, Lazy
from calce_jax.checkpoints.convert.writer import cast
from calce_jax.distributed.param_names import named_leaves
from calce_jax.models.calce import Calce, CalceConfig, label

FLOAT32 = np.dtype(np.float32)


@dataclass(frozen=True)
class Weights:
    """Weights by the names they have in a model without adapters; adapters are "t5/.../a" and "t5/.../b".

    Attributes:
      base: everything but adapters, as training starts from it.
      trained: adapters, projections and `ln_vision`, where a source has them; they take the place of the base's.
      sizes: of the model, adapters included.
      origin: the sources, in words.
      file: the base file, if the whole base is what is in there.
    """

    base: Mapping[str, Lazy]
    trained: Mapping[str, Lazy]
    sizes: CalceConfig
    origin: str
    file: Path | None = None

    def in_dtype(self, dtype: np.dtype) -> "Weights":
        """Return the same with frozen weights in another dtype; what is trained stays as it is."""
        frozen = {name: leaf for name, leaf in self.base.items() if is_frozen(name)}
        return replace(self, base={**self.base, **cast(frozen, dtype)}, file=None)

    def all_trained(self) -> dict[str, Lazy]:
        """Return all that CALCE trains, in float32; what the sources do not hold as trained is the base's.

        Raises:
          ConversionError: there are no adapters.
        """
        if not self.trained:
            raise ConversionError(["the sources hold no adapters; add calce:PATH, mrblip:PATH, or orbax:PATH of a run"])
        merged = {**self.base, **self.trained}
        return cast({name: merged[name] for name in trained_shapes(self.sizes)}, FLOAT32)

    def merged(self) -> dict[str, Lazy]:
        """Return the model without adapters that computes the same, every weight in its own dtype."""
        lora, weights = self.sizes.lora, {**self.base}
        for name, leaf in self.trained.items():
            if not name.endswith(("/a", "/b")):
                weights[name] = leaf
            elif lora is not None and name.endswith("/a"):
                layer, kernel = name.removesuffix("/a"), weights[f"{name.removesuffix('/a')}/kernel"]
                adapter = (leaf, self.trained[f"{layer}/b"])
                weights[f"{layer}/kernel"] = _fused(kernel, *adapter, lora.alpha / lora.rank)
        return weights


def is_frozen(name: str) -> bool:
    """Say whether CALCE leaves a weight as it is."""
    return label(tuple(name.split("/"))) == "frozen"


def base_shapes(sizes: CalceConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return every weight of a model without adapters, abstract."""
    return _abstract(replace(sizes, lora=None))


def trained_shapes(sizes: CalceConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Return every weight that CALCE trains, abstract: adapters, projections and `ln_vision`."""
    return {name: leaf for name, leaf in _abstract(sizes).items() if not is_frozen(name)}


def held(array: np.ndarray) -> Lazy:
    """Return an array that is in memory already."""
    return Lazy(array.shape, array.dtype, lambda: array)


@cache
def _abstract(sizes: CalceConfig) -> dict[str, jax.ShapeDtypeStruct]:
    return named_leaves(nnx.state(nnx.eval_shape(lambda: Calce(sizes, rngs=nnx.Rngs(0))), nnx.Param))


def _fused(kernel: Lazy, a: Lazy, b: Lazy, scale: float) -> Lazy:
    """Add an adapter to its layer, stacked or not; the sum is made in float32."""

    def read() -> np.ndarray:
        wide = kernel.read().astype(FLOAT32)
        wide += np.matmul(a.read(), b.read()) * np.float32(scale)
        return wide.astype(kernel.dtype, copy=False)

    return Lazy(kernel.shape, kernel.dtype, read)
