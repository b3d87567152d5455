"""The mechanism of weight conversion: a table, which is a list of rows, is read in either direction.

Both directions read the same rows, so what is written can be read back bit by bit.
Everything is checked by names, shapes and dtypes before the first number is read, and all that is wrong is said at
once.

Only numpy here: PyTorch is not needed. `parameters` and `torch_parameters` read nothing until asked, and then the
tensors of one row at a time, so a model need never be in memory as a whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from calce_jax.checkpoints.convert.mapping import LAYER, Ignored, Parts, Row, Table, rows_of
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.errors import UserError

WEIGHT_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)))


@runtime_checkable
class Shaped(Protocol):
    """What has a shape and a dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape, known without reading the numbers."""
        ...

    @property
    def dtype(self) -> Any:
        """The dtype, known without reading the numbers."""
        ...


@runtime_checkable
class Tensor(Shaped, Protocol):
    """What is read from: an array, or a handle with a shape that becomes an array (a slice of a file, say)."""

    def __array__(self) -> np.ndarray:
        """Read the numbers."""
        ...


@dataclass(frozen=True)
class Lazy:
    """An array that is elsewhere; `read` brings it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the numbers."""
        return np.asarray(self.read(), dtype)


class ConversionError(UserError):
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


def check(table: Table, tensors: Mapping[str, Shaped], abstract: Any) -> None:
    """Check names, shapes and dtypes of a PyTorch state dict against a model.

    Args:
      table: the rows that apply.
      tensors: anything that has a shape and a dtype, by PyTorch name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have shapes.

    Raises:
      ConversionError: a tensor matches no row or several, is missing, has a wrong shape, or is not of floating point; a
        parameter has no row or several. All of them are listed.
    """
    _plan(table, tensors, abstract)


def fits(table: Table, tensors: Mapping[str, Any]) -> bool:
    """Say whether any of the tensors has a name that the table's rows read."""
    patterns = [
        re.compile(re.escape(name).replace(re.escape(LAYER), r"\d+")) for row in rows_of(table) for name in row.readable
    ]
    return any(pattern.fullmatch(name) for name in tensors for pattern in patterns)


def parameters(table: Table, tensors: Mapping[str, Tensor], abstract: Any) -> dict[str, Lazy]:
    """Return the model's parameters by name, to be read from a PyTorch state dict when they are asked for.

    Args:
      table: the rows that apply.
      tensors: PyTorch tensors by name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have the shapes wanted, such as
        `nnx.state(nnx.eval_shape(...))`. Its dtypes do not matter: numbers stay as they are in the tensors, in float32
        where the layers of one parameter differ.

    Raises:
      ConversionError: as `check`; and on reading, if tensors that should be equal are not, hold numbers that are not
        finite, or hold something that has no place in the model.
    """
    plan, leaves = _plan(table, tensors, abstract), named_leaves(abstract)
    members: dict[Row, dict[_Slot, list[str]]] = {}
    for slot, names in plan.items():
        members.setdefault(slot.row, {})[slot] = names
    lazies = {}
    for row, slots in members.items():
        dtype = _common(tensors[names[0]].dtype for names in slots.values())
        group = _Group(slots, tensors, {part: tuple(leaves[part].shape) for part in row.parts}, dtype)
        lazies |= {part: Lazy(shape, dtype, partial(group.take, part)) for part, shape in group.shapes.items()}
    return {name: lazies[name] for name in leaves}


def to_flax(table: Table, tensors: Mapping[str, Tensor], abstract: Any) -> Any:
    """Return the model's parameters as numpy arrays, read from a PyTorch state dict.

    Args:
      table: the rows that apply.
      tensors: PyTorch tensors by name. Each is read once, when its turn comes.
      abstract: as for `parameters`; here its dtypes are those that numbers are converted to.

    Returns:
      The same pytree with arrays.

    Raises:
      ConversionError: as `parameters`.
    """
    wanted, arrays, problems = named_leaves(abstract), {}, []
    for name, parameter in parameters(table, tensors, abstract).items():
        try:
            arrays[name] = parameter.read().astype(wanted[name].dtype, copy=False)
        except ConversionError as error:
            problems += error.problems
    if problems:
        raise ConversionError(tuple(dict.fromkeys(problems)))
    return with_leaves(abstract, arrays)


def torch_parameters(table: Table, state: Any, *, tied: bool = True) -> dict[str, Lazy]:
    """Return a PyTorch state dict whose tensors are made of the model's parameters when they are asked for.

    Args:
      table: the rows that apply.
      state: a pytree whose leaves have shapes and dtypes, which the tensors keep, and can be read.
      tied: whether PyTorch's second names of one tensor are given too.

    Raises:
      ConversionError: a parameter has no row or several, or a row's parameter is missing.
    """
    leaves = named_leaves(state)
    slots, problems = _slots(table, leaves)
    if problems:
        raise ConversionError(problems)
    held, lazies = _Held(leaves), {}
    for slot in slots:
        dtype = _common(leaves[part].dtype for part in slot.row.parts)
        lazy = Lazy(_torch_shape(slot, leaves), dtype, partial(held.tensor, slot))
        for pattern in (slot.row.torch, *(slot.row.tied if tied else ())):
            lazies[slot.name(pattern)] = lazy
    return lazies


def torch_tensors(table: Table, state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Give the PyTorch state dict's names and tensors one by one, in the table's order; errors as above."""
    for name, tensor in torch_parameters(table, state).items():
        yield name, tensor.read()


def to_torch(table: Table, state: Any) -> dict[str, np.ndarray]:
    """Return a PyTorch state dict made of the model's parameters."""
    return dict(torch_tensors(table, state))


class _Group:
    """The parameters of one row, filled together, so that a fused tensor is read once and not once for each part."""

    def __init__(
        self,
        slots: Mapping["_Slot", list[str]],
        tensors: Mapping[str, Tensor],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
    ):
        self.shapes = shapes
        self._slots, self._tensors, self._dtype = slots, tensors, dtype
        self._ready: dict[str, np.ndarray] = {}

    def take(self, part: str) -> np.ndarray:
        """Return one of the parameters; the others stay here until they are taken too."""
        if part not in self._ready:
            self._ready = self._read()
        return self._ready.pop(part)

    def _read(self) -> dict[str, np.ndarray]:
        arrays = {part: np.empty(shape, self._dtype) for part, shape in self.shapes.items()}
        problems = []
        for slot, (name, *others) in self._slots.items():
            tensor = np.asarray(self._tensors[name])
            if not np.isfinite(tensor).all():
                problems.append(f"{name}: holds numbers that are not finite; the file is damaged, get it again")
            problems += [
                f"{other}: differs from {name}, though both are {' + '.join(slot.row.parts)}"
                for other in others
                if not np.array_equal(np.asarray(self._tensors[other]), tensor, equal_nan=True)
            ]
            try:
                for path, part in zip(slot.row.parts, slot.row.operation.to_flax(tensor), strict=True):
                    slot.of(arrays[path])[...] = part.astype(self._dtype, copy=False)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ConversionError(problems)
        return arrays


class _Held:
    """The parameters of the row read last: they come from a device or a file once a row, not once a layer."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves
        self._row: Row | None = None
        self._parts: Parts = ()

    def tensor(self, slot: "_Slot") -> np.ndarray:
        """Return what fills a place of the state dict."""
        if self._row is not slot.row:
            self._row, self._parts = None, ()  # before others come, lest both be in memory
            self._parts = tuple(np.asarray(self._leaves[part]) for part in slot.row.parts)
            self._row = slot.row
        return np.ascontiguousarray(slot.row.operation.to_torch(tuple(slot.of(part) for part in self._parts)))


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
            if tuple(tensor.shape) != needed:
                problems.append(f"{name}: has shape {tuple(tensor.shape)}, the model needs {needed}")
            elif np.dtype(tensor.dtype) not in WEIGHT_DTYPES:
                known = ", ".join(map(str, WEIGHT_DTYPES))
                problems.append(f"{name}: has dtype {np.dtype(tensor.dtype)}, the model needs one of {known}")
            else:
                found[slot].append(name)
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


def _common(dtypes: Iterator[Any]) -> np.dtype:
    """Return the dtype of all, or float32."""
    first, *others = {np.dtype(dtype) for dtype in dtypes}
    return np.dtype(np.float32) if others else first


def _pattern(ignored: str) -> re.Pattern[str]:
    return re.compile(re.escape(ignored).replace(r"\*", ".*"))
