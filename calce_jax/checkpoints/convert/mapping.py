"""Rows of the mapping tables: a weight's names in PyTorch and in Flax, and the transform between its arrays."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

LAYER_PLACEHOLDER = "{layer}"
ParamArrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class TensorTransform:
    """A transform of one PyTorch tensor to one or more Flax arrays, and its exact inverse.

    `to_flax` raises a ValueError for a tensor that it cannot represent without loss.
    """

    to_flax: Callable[[np.ndarray], ParamArrays]
    to_torch: Callable[[ParamArrays], np.ndarray]


COPY = TensorTransform(lambda tensor: (tensor,), lambda arrays: arrays[0])
# PyTorch stores the kernel of a linear layer as (out, in), Flax as (in, out).
TRANSPOSE = TensorTransform(lambda tensor: (tensor.T,), lambda arrays: arrays[0].T)


def squeeze_leading(num_axes: int) -> TensorTransform:
    """Drop `num_axes` leading axes of length 1."""
    return TensorTransform(
        lambda tensor: (_squeeze_leading(tensor, num_axes),), lambda arrays: arrays[0][(None,) * num_axes]
    )


def split_fused(count: int) -> TensorTransform:
    """Split a fused projection (count * out, in) into `count` kernels (in, out)."""
    return TensorTransform(
        lambda tensor: tuple(kernel.T for kernel in np.split(tensor, count)),
        lambda arrays: np.concatenate([kernel.T for kernel in arrays]),
    )


@dataclass(frozen=True)
class MappingRow:
    """A PyTorch tensor and the Flax parameter, or parameters, that hold its values.

    Attributes:
      torch_name: name in the state dict; `{layer}` stands for a layer's number, and the parameters then have a leading
        axis of layers.
      flax_name: one or several names, as `calce_jax.distributed.param_names.named_leaves` returns them.
      transform: applied to the tensor of each layer.
      layer_stride: only layers 0, layer_stride, 2 * layer_stride, ... have the tensor; index i of the leading axis is
        layer i * layer_stride.
      aliases: other names that are read but not written.
      tied: names of further tensors with the same values: written too, and checked for equality when read.
    """

    torch_name: str
    flax_name: str | tuple[str, ...]
    transform: TensorTransform = COPY
    layer_stride: int = 1
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def param_names(self) -> tuple[str, ...]:
        """`flax_name` as a tuple."""
        return (self.flax_name,) if isinstance(self.flax_name, str) else self.flax_name

    @property
    def is_stacked(self) -> bool:
        """Whether the parameters have a leading axis of layers."""
        return LAYER_PLACEHOLDER in self.torch_name

    @property
    def accepted_names(self) -> tuple[str, ...]:
        """All names that are read, in order of preference."""
        return (self.torch_name, *self.aliases, *self.tied)


@dataclass(frozen=True)
class IgnoredKey:
    """A pattern of PyTorch names (`*` matches any string) that are neither read nor written, and the reason."""

    torch_name: str
    reason: str


KeyMapping = Sequence[MappingRow | IgnoredKey]


def add_prefix(mapping: KeyMapping, torch_prefix: str = "", flax_prefix: str = "") -> list[MappingRow | IgnoredKey]:
    """Return a mapping with prefixes before all PyTorch and Flax names, as part of the mapping of a larger model."""

    def prefix_row(row: MappingRow | IgnoredKey) -> MappingRow | IgnoredKey:
        if isinstance(row, IgnoredKey):
            return row
        return replace(row, flax_name=tuple(flax_prefix + name for name in row.param_names))

    return [prefix_row(row) for row in rename_keys(mapping, lambda name: torch_prefix + name)]


def rename_keys(mapping: KeyMapping, rename: Callable[[str], str]) -> list[MappingRow | IgnoredKey]:
    """Return a mapping with `rename` applied to all PyTorch names."""

    def rename_row(row: MappingRow | IgnoredKey) -> MappingRow | IgnoredKey:
        if isinstance(row, IgnoredKey):
            return replace(row, torch_name=rename(row.torch_name))
        aliases, tied = (tuple(map(rename, names)) for names in (row.aliases, row.tied))
        return replace(row, torch_name=rename(row.torch_name), aliases=aliases, tied=tied)

    return [rename_row(row) for row in mapping]


def add_aliases(mapping: KeyMapping, alias_of: Callable[[str], str]) -> list[MappingRow | IgnoredKey]:
    """Return a mapping that also reads `alias_of(name)` for every PyTorch name; the names written do not change."""

    def alias_rows(row: MappingRow | IgnoredKey) -> tuple[MappingRow | IgnoredKey, ...]:
        if isinstance(row, IgnoredKey):
            alias_row = replace(row, torch_name=alias_of(row.torch_name))
            return (row,) if alias_row == row else (row, alias_row)
        spellings = dict.fromkeys(map(alias_of, row.accepted_names))
        return (replace(row, aliases=(*row.aliases, *(name for name in spellings if name not in row.accepted_names))),)

    return [aliased for row in mapping for aliased in alias_rows(row)]


def mapping_rows(mapping: KeyMapping) -> list[MappingRow]:
    """Return the rows without the ignored keys."""
    return [row for row in mapping if isinstance(row, MappingRow)]


def _squeeze_leading(tensor: np.ndarray, num_axes: int) -> np.ndarray:
    return tensor.reshape(tensor.shape[num_axes:])
