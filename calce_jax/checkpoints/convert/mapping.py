"""What a weight is called in PyTorch and here, and how its numbers go over: the rows that tables are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

LAYER_PLACEHOLDER = "{layer}"
ParamArrays = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class TensorTransform:
    """How one PyTorch tensor becomes one or more arrays here, and how these become it again.

    `to_flax` raises a ValueError for a tensor that it would have to take something away from.
    """

    to_flax: Callable[[np.ndarray], ParamArrays]
    to_torch: Callable[[ParamArrays], np.ndarray]


COPY = TensorTransform(lambda tensor: (tensor,), lambda parts: parts[0])
# torch keeps a linear layer's matrix as (out, in), we as (in, out).
TRANSPOSE = TensorTransform(lambda tensor: (tensor.T,), lambda parts: parts[0].T)


def squeeze_leading(num_axes: int) -> TensorTransform:
    """Drop that many leading axes of length 1."""
    return TensorTransform(
        lambda tensor: (_squeeze_leading(tensor, num_axes),), lambda arrays: arrays[0][(None,) * num_axes]
    )


def split_fused(count: int) -> TensorTransform:
    """Cut a fused projection (count * out, in) into `count` kernels (in, out)."""
    return TensorTransform(
        lambda tensor: tuple(kernel.T for kernel in np.split(tensor, count)),
        lambda arrays: np.concatenate([kernel.T for kernel in arrays]),
    )


@dataclass(frozen=True)
class MappingRow:
    """One PyTorch name and its parameter here, or the parameters that it is split into.

    Attributes:
      torch_name: the name; `{layer}` in it stands for a number, and the parameter then has a leading axis of layers.
      flax_name: names of parameters, as `calce_jax.distributed.param_names.named_leaves` gives them.
      transform: how the numbers of one layer go over.
      layer_stride: only each `layer_stride`-th layer has this parameter; layer i is row i / every of the leading axis.
      aliases: other spellings that are read but not written.
      tied: names under which PyTorch keeps the same numbers again: written too, and if read, they must be the same.
    """

    torch_name: str
    flax_name: str | tuple[str, ...]
    transform: TensorTransform = COPY
    layer_stride: int = 1
    aliases: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def param_names(self) -> tuple[str, ...]:
        """The names of the parameters, as a tuple."""
        return (self.flax_name,) if isinstance(self.flax_name, str) else self.flax_name

    @property
    def is_stacked(self) -> bool:
        """Whether the parameters have a leading axis of layers."""
        return LAYER_PLACEHOLDER in self.torch_name

    @property
    def accepted_names(self) -> tuple[str, ...]:
        """All names that hold these numbers, the one to prefer first."""
        return (self.torch_name, *self.aliases, *self.tied)


@dataclass(frozen=True)
class IgnoredKey:
    """PyTorch names (`*` stands for anything) that are neither read nor written, and why."""

    torch_name: str
    reason: str


KeyMapping = Sequence[MappingRow | IgnoredKey]


def add_prefix(mapping: KeyMapping, torch_prefix: str = "", flax_prefix: str = "") -> list[MappingRow | IgnoredKey]:
    """Return the table with something put before every name, to build a model's table from those of its parts."""

    def put(row: MappingRow | IgnoredKey) -> MappingRow | IgnoredKey:
        return (
            row
            if isinstance(row, IgnoredKey)
            else replace(row, flax_name=tuple(flax_prefix + name for name in row.param_names))
        )

    return [put(row) for row in rename_keys(mapping, lambda name: torch_prefix + name)]


def rename_keys(mapping: KeyMapping, rename: Callable[[str], str]) -> list[MappingRow | IgnoredKey]:
    """Return the table with other PyTorch names."""

    def put(row: MappingRow | IgnoredKey) -> MappingRow | IgnoredKey:
        if isinstance(row, IgnoredKey):
            return replace(row, torch_name=rename(row.torch_name))
        aliases, tied = (tuple(map(rename, names)) for names in (row.aliases, row.tied))
        return replace(row, torch_name=rename(row.torch_name), aliases=aliases, tied=tied)

    return [put(row) for row in mapping]


def add_aliases(mapping: KeyMapping, alias_of: Callable[[str], str]) -> list[MappingRow | IgnoredKey]:
    """Return the table reading a second spelling of every name as well; what is written stays."""

    def put(row: MappingRow | IgnoredKey) -> tuple[MappingRow | IgnoredKey, ...]:
        if isinstance(row, IgnoredKey):
            alias_row = replace(row, torch_name=alias_of(row.torch_name))
            return (row,) if alias_row == row else (row, alias_row)
        spellings = dict.fromkeys(map(alias_of, row.accepted_names))
        return (replace(row, aliases=(*row.aliases, *(name for name in spellings if name not in row.accepted_names))),)

    return [spelled for row in mapping for spelled in put(row)]


def mapping_rows(mapping: KeyMapping) -> list[MappingRow]:
    """Return the rows that are read and written."""
    return [row for row in mapping if isinstance(row, MappingRow)]


def _squeeze_leading(tensor: np.ndarray, num_axes: int) -> np.ndarray:
    return tensor.reshape(tensor.shape[num_axes:])
