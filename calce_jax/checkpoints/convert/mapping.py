"""What a weight is called in PyTorch and here, and how its numbers go over: the rows that tables are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

LAYER = "{layer}"
Parts = tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Operation:
    """How one PyTorch tensor becomes one or more arrays here, and how these become it again.

    `to_flax` raises a ValueError for a tensor that it would have to take something away from.
    """

    to_flax: Callable[[np.ndarray], Parts]
    to_torch: Callable[[Parts], np.ndarray]


COPY = Operation(lambda tensor: (tensor,), lambda parts: parts[0])
# torch keeps a linear layer's matrix as (out, in), we as (in, out).
TRANSPOSE = Operation(lambda tensor: (tensor.T,), lambda parts: parts[0].T)


def without_leading(ones: int) -> Operation:
    """Drop that many leading axes of length 1."""
    return Operation(lambda tensor: (_squeezed(tensor, ones),), lambda parts: parts[0][(None,) * ones])


def split_rows(count: int) -> Operation:
    """Cut a fused projection (count * out, in) into `count` kernels (in, out)."""
    return Operation(
        lambda tensor: tuple(part.T for part in np.split(tensor, count)),
        lambda parts: np.concatenate([part.T for part in parts]),
    )


@dataclass(frozen=True)
class Row:
    """One PyTorch name and its parameter here, or the parameters that it is split into.

    Attributes:
      torch: the name; `{layer}` in it stands for a number, and the parameter then has a leading axis of layers.
      ours: names of parameters, as `calce_jax.distributed.param_names.named_leaves` gives them.
      operation: how the numbers of one layer go over.
      every: only each `every`-th layer has this parameter; layer i is row i / every of the leading axis.
      also: other spellings that are read but not written.
      tied: names under which PyTorch keeps the same numbers again: written too, and if read, they must be the same.
    """

    torch: str
    ours: str | tuple[str, ...]
    operation: Operation = COPY
    every: int = 1
    also: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of the parameters, as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def stacked(self) -> bool:
        """Whether the parameters have a leading axis of layers."""
        return LAYER in self.torch

    @property
    def readable(self) -> tuple[str, ...]:
        """All names that hold these numbers, the one to prefer first."""
        return (self.torch, *self.also, *self.tied)


@dataclass(frozen=True)
class Ignored:
    """PyTorch names (`*` stands for anything) that are neither read nor written, and why."""

    torch: str
    reason: str


Table = Sequence[Row | Ignored]


def prefixed(table: Table, torch: str = "", ours: str = "") -> list[Row | Ignored]:
    """Return the table with something put before every name, to build a model's table from those of its parts."""

    def put(row: Row | Ignored) -> Row | Ignored:
        return row if isinstance(row, Ignored) else replace(row, ours=tuple(ours + part for part in row.parts))

    return [put(row) for row in renamed(table, lambda name: torch + name)]


def renamed(table: Table, rename: Callable[[str], str]) -> list[Row | Ignored]:
    """Return the table with other PyTorch names."""

    def put(row: Row | Ignored) -> Row | Ignored:
        if isinstance(row, Ignored):
            return replace(row, torch=rename(row.torch))
        also, tied = (tuple(map(rename, names)) for names in (row.also, row.tied))
        return replace(row, torch=rename(row.torch), also=also, tied=tied)

    return [put(row) for row in table]


def also_spelled(table: Table, spell: Callable[[str], str]) -> list[Row | Ignored]:
    """Return the table reading a second spelling of every name as well; what is written stays."""

    def put(row: Row | Ignored) -> tuple[Row | Ignored, ...]:
        if isinstance(row, Ignored):
            other = replace(row, torch=spell(row.torch))
            return (row,) if other == row else (row, other)
        others = dict.fromkeys(map(spell, row.readable))
        return (replace(row, also=(*row.also, *(name for name in others if name not in row.readable))),)

    return [spelled for row in table for spelled in put(row)]


def rows_of(table: Table) -> list[Row]:
    """Return the rows that are read and written."""
    return [row for row in table if isinstance(row, Row)]


def _squeezed(tensor: np.ndarray, ones: int) -> np.ndarray:
    return tensor.reshape(tensor.shape[ones:])
