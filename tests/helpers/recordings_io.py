"""Reading the original's recordings, and loading weights into modules."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert.state_dict import KeyMapping, MappingRow, to_flax, to_torch


def load_recording(shared: Path, group: str) -> dict[str, np.ndarray]:
    """Return the recorded arrays of a group, such as "01_vit"."""
    with np.load(shared / "golden" / f"{group}.npz") as arrays:
        return dict(arrays)


def select_weights(arrays: Mapping[str, np.ndarray], *prefixes: str) -> dict[str, np.ndarray]:
    """Return the arrays whose names start with one of the prefixes."""
    return {name: array for name, array in arrays.items() if name.startswith(prefixes)}


def load_state_dict(module: Any, mapping: KeyMapping, tensors: Mapping[str, np.ndarray]) -> Any:
    """Load a PyTorch state dict into a module, which may be abstract, in place; return the module."""
    nnx.update(module, jax.tree.map(jnp.asarray, to_flax(mapping, tensors, nnx.state(module))))
    return module


def deterministic_weights(make_module: Callable[[], Any], mapping: KeyMapping) -> tuple[Any, dict[str, np.ndarray]]:
    """Return a module with weights 0.3 * sin(...), computed without compiling, and the same as a PyTorch state dict."""
    module = nnx.eval_shape(make_module)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), nnx.state(module))
    tensors = {
        name: (0.3 * np.sin(1.7 * number + np.arange(tensor.size) * 0.9)).reshape(tensor.shape).astype(np.float32)
        for number, (name, tensor) in enumerate(sorted(to_torch(mapping, zeros).items()))
    }
    for row in mapping:
        if isinstance(row, MappingRow):
            tensors |= {name: tensors[row.torch_name] for name in row.tied}
    return load_state_dict(module, mapping, tensors), tensors
