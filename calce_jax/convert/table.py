"""The mechanism of weight conversion: rows that pair a PyTorch name with a parameter here.

A table is a list of rows. `to_flax` and `to_torch` read the same rows, so what is written can be read back bit by bit.
Everything is checked by names and shapes before the first number is read, and all that is wrong is said at once.

Only numpy here: PyTorch is not needed, and tensors are taken and given one at a time.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from calce_jax.paths import named_leaves, with_leaves

LAYER = "{layer}"
Parts = tuple[np.ndarray, ...]


@runtime_checkable
class Shaped(Protocol):
    """What has a shape."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, known without reading the numbers."""
        ...


@runtime_checkable
class Tensor(Shaped, Protocol):
    """What is read from: an array, or a handle with a shape that becomes an array (a slice of a file, say)."""

    def __array__(self) -> np.ndarray:
        """Read the numbers."""
        ...


@dataclass(frozen=True)
class Operation:
    """How one PyTorch tensor becomes one or more arrays here, and how these become it again."""

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
      ours: names of parameters, as `calce_jax.paths.named_leaves` gives them.
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


class ConversionError(ValueError):
    """Names or shapes do not fit; `problems` holds a line for each."""

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"weights do not fit the model in {len(problems)} places:", *problems]))


@dataclass(frozen=True)
class _Slot:
    """One tensor's place: a row, and the layer's index along the leading axis where there is one."""

    row: Row
    index: int | None

    def name(self, pattern: str) -> str:
        """Fill the layer's number into a pattern."""
        return pattern if self.index is None else pattern.replace(LAYER, str(self.index * self.row.every))

    def of(self, array: Any) -> Any:
        """Return this layer's part of a parameter."""
        return array if self.index is None else array[self.index]


def prefixed(table: Table, torch: str = "", ours: str = "") -> list[Row | Ignored]:
    """Return the table with something put before every name, to build a model's table from those of its parts."""

    def put(row: Row | Ignored) -> Row | Ignored:
        if isinstance(row, Ignored):
            return replace(row, torch=torch + row.torch)
        return replace(
            row,
            torch=torch + row.torch,
            ours=tuple(ours + part for part in row.parts),
            also=tuple(torch + name for name in row.also),
            tied=tuple(torch + name for name in row.tied),
        )

    return [put(row) for row in table]


def check(table: Table, tensors: Mapping[str, Shaped], abstract: Any) -> None:
    """Check names and shapes of a PyTorch state dict against a model.

    Args:
      table: the rows that apply.
      tensors: anything that has a shape, by PyTorch name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have shapes.

    Raises:
      ConversionError: a tensor matches no row or several, is missing, or has a wrong shape; a parameter has no row or
        several. All of them are listed.
    """
    _plan(table, tensors, abstract)


def to_flax(table: Table, tensors: Mapping[str, Tensor], abstract: Any) -> Any:
    """Return the model's parameters as numpy arrays, read from a PyTorch state dict.

    Args:
      table: the rows that apply.
      tensors: PyTorch tensors by name. Each is read once, when its turn comes.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have the shapes and dtypes wanted, such as
        `nnx.state(nnx.eval_shape(...))`.

    Returns:
      The same pytree with arrays; numbers are converted to the wanted dtypes.

    Raises:
      ConversionError: as `check`; or tensors that should be equal are not.
    """
    plan, wanted, problems = _plan(table, tensors, abstract), named_leaves(abstract), []
    arrays = {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in wanted.items()}
    for slot, (name, *others) in plan.items():
        tensor = np.asarray(tensors[name])
        problems += [
            f"{other}: differs from {name}, though both are {' + '.join(slot.row.parts)}"
            for other in others
            if not np.array_equal(np.asarray(tensors[other]), tensor, equal_nan=True)
        ]
        for path, part in zip(slot.row.parts, slot.row.operation.to_flax(tensor), strict=True):
            slot.of(arrays[path])[...] = part.astype(arrays[path].dtype)
    if problems:
        raise ConversionError(problems)
    return with_leaves(abstract, arrays)


def to_torch(table: Table, state: Any) -> dict[str, np.ndarray]:
    """Return a PyTorch state dict made of the model's parameters; `torch_tensors` gives it tensor by tensor."""
    return dict(torch_tensors(table, state))


def torch_tensors(table: Table, state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Give the PyTorch state dict's names and tensors one by one, in the table's order and in the state's dtypes.

    Raises:
      ConversionError: a parameter has no row or several, or a row's parameter is missing.
    """
    leaves = named_leaves(state)
    slots, problems = _slots(table, leaves)
    if problems:
        raise ConversionError(problems)
    held: tuple[Row | None, Parts] = (None, ())
    for slot in slots:
        if held[0] is not slot.row:  # from the device once a parameter, not once a layer
            held = (slot.row, tuple(np.asarray(leaves[part]) for part in slot.row.parts))
        tensor = np.ascontiguousarray(slot.row.operation.to_torch(tuple(slot.of(part) for part in held[1])))
        for pattern in (slot.row.torch, *slot.row.tied):
            yield slot.name(pattern), tensor


def _plan(table: Table, tensors: Mapping[str, Shaped], abstract: Any) -> dict[_Slot, list[str]]:
    """Say which tensors fill which place; the first of each list is to be read, others must equal it."""
    leaves = named_leaves(abstract)
    slots, problems = _slots(table, leaves)
    owners: dict[str, list[_Slot]] = {}
    for slot in slots:
        for pattern in slot.row.readable:
            owners.setdefault(slot.name(pattern), []).append(slot)
    ignored = [(_pattern(row.torch), row) for row in table if isinstance(row, Ignored)]
    found: dict[_Slot, list[str]] = {slot: [] for slot in slots}
    for name, tensor in tensors.items():
        takers = owners.get(name, [])
        rows = [slot.row.torch for slot in takers] + [row.torch for regex, row in ignored if regex.fullmatch(name)]
        if len(rows) != 1:
            why = f"matches {len(rows)} rows: {', '.join(rows)}" if rows else "matches no row"
            problems.append(f"{name} {tuple(tensor.shape)}: {why}")
        for slot in takers:
            needed = _torch_shape(slot, leaves)
            if tuple(tensor.shape) == needed:
                found[slot].append(name)
            else:
                problems.append(f"{name}: has shape {tuple(tensor.shape)}, the model needs {needed}")
    for slot, names in found.items():
        names.sort(key=[slot.name(pattern) for pattern in slot.row.readable].index)
        if not any(slot.name(pattern) in tensors for pattern in slot.row.readable):
            spelled = " or ".join(slot.name(pattern) for pattern in slot.row.readable)
            problems.append(f"{spelled} {_torch_shape(slot, leaves)}: missing, for {' + '.join(slot.row.parts)}")
    if problems:
        raise ConversionError(problems)
    return found


def _slots(table: Table, leaves: Mapping[str, Any]) -> tuple[list[_Slot], list[str]]:
    """Number the layers of every row, and check that rows and parameters pair up."""
    slots, problems, claims = [], [], dict.fromkeys(leaves, 0)
    for row in table:
        if isinstance(row, Ignored):
            continue
        missing = [part for part in row.parts if part not in leaves]
        problems += [f"{part}: the table has it (from {row.torch}), the model does not" for part in missing]
        if missing:
            continue
        for part in row.parts:
            claims[part] += 1
        depths = {leaves[part].shape[0] for part in row.parts} if row.stacked else {None}
        slots += [_Slot(row, index) for depth in depths for index in ([None] if depth is None else range(depth))]
    problems += [
        f"{name} {tuple(leaves[name].shape)}: {'no row' if count == 0 else f'{count} rows'} of the table for it"
        for name, count in claims.items()
        if count != 1
    ]
    return slots, problems


def _torch_shape(slot: _Slot, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape a tensor must have, by running the operation on arrays that hold one number."""
    shapes = [leaves[part].shape[slot.index is not None :] for part in slot.row.parts]
    return slot.row.operation.to_torch(tuple(np.broadcast_to(np.int8(0), shape) for shape in shapes)).shape


def _pattern(ignored: str) -> re.Pattern[str]:
    return re.compile(re.escape(ignored).replace(r"\*", ".*"))


def _squeezed(tensor: np.ndarray, ones: int) -> np.ndarray:
    return tensor.reshape(tensor.shape[ones:])
