"""The mechanism of weight conversion: a table, which is a list of rows, is read in either direction.

Both directions read the same rows, so what is written can be read back bit by bit.
Everything is checked by names, shapes and dtypes before the first number is read, and all that is wrong is said at
once.

Only numpy here: PyTorch is not needed. `parameters` and `lazy_state_dict` read nothing until asked, and then the
tensors of one row at a time, so a model need never be in memory as a whole.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from calce_jax.checkpoints.convert.mapping import (
    LAYER_PLACEHOLDER,
    IgnoredKey,
    KeyMapping,
    MappingRow,
    ParamArrays,
    mapping_rows,
)
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.errors import UserError

WEIGHT_DTYPES = tuple(map(np.dtype, (np.float32, np.float16, ml_dtypes.bfloat16, np.float64)))


@runtime_checkable
class ArraySpec(Protocol):
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
class TensorLike(ArraySpec, Protocol):
    """What is read from: an array, or a handle with a shape that becomes an array (a slice of a file, say)."""

    def __array__(self) -> np.ndarray:
        """Read the numbers."""
        ...


@dataclass(frozen=True)
class LazyArray:
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
class TensorSlot:
    """One tensor's place: a row, and the layer's index along the leading axis where there is one."""

    row: MappingRow
    index: int | None

    def torch_name(self, pattern: str) -> str:
        """Fill the layer's number into a pattern."""
        return (
            pattern
            if self.index is None
            else pattern.replace(LAYER_PLACEHOLDER, str(self.index * self.row.layer_stride))
        )

    def layer_of(self, array: Any) -> Any:
        """Return this layer's part of a parameter."""
        return array if self.index is None else array[self.index]


def check_state_dict(mapping: KeyMapping, tensors: Mapping[str, ArraySpec], abstract: Any) -> None:
    """Check names, shapes and dtypes of a PyTorch state dict against a model.

    Args:
      mapping: the rows that apply.
      tensors: anything that has a shape and a dtype, by PyTorch name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have shapes.

    Raises:
      ConversionError: a tensor matches no row or several, is missing, has a wrong shape, or is not of floating point; a
        parameter has no row or several. All of them are listed.
    """
    _match_tensors(mapping, tensors, abstract)


def matches_any(mapping: KeyMapping, tensors: Mapping[str, Any]) -> bool:
    """Say whether any of the tensors has a name that the table's rows read."""
    patterns = [
        re.compile(re.escape(name).replace(re.escape(LAYER_PLACEHOLDER), r"\d+"))
        for row in mapping_rows(mapping)
        for name in row.accepted_names
    ]
    return any(pattern.fullmatch(name) for name in tensors for pattern in patterns)


def lazy_params(mapping: KeyMapping, tensors: Mapping[str, TensorLike], abstract: Any) -> dict[str, LazyArray]:
    """Return the model's parameters by name, to be read from a PyTorch state dict when they are asked for.

    Args:
      mapping: the rows that apply.
      tensors: PyTorch tensors by name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have the shapes wanted, such as
        `nnx.state(nnx.eval_shape(...))`. Its dtypes do not matter: numbers stay as they are in the tensors, in float32
        where the layers of one parameter differ.

    Raises:
      ConversionError: as `check`; and on reading, if tensors that should be equal are not, hold numbers that are not
        finite, or hold something that has no place in the model.
    """
    matches, leaves = _match_tensors(mapping, tensors, abstract), named_leaves(abstract)
    slots_by_row: dict[MappingRow, dict[TensorSlot, list[str]]] = {}
    for slot, names in matches.items():
        slots_by_row.setdefault(slot.row, {})[slot] = names
    lazy_arrays = {}
    for row, slots in slots_by_row.items():
        dtype = _common_dtype(tensors[names[0]].dtype for names in slots.values())
        reader = RowReader(slots, tensors, {param: tuple(leaves[param].shape) for param in row.param_names}, dtype)
        lazy_arrays |= {
            param: LazyArray(shape, dtype, partial(reader.pop, param)) for param, shape in reader.shapes.items()
        }
    return {name: lazy_arrays[name] for name in leaves}


def to_flax(mapping: KeyMapping, tensors: Mapping[str, TensorLike], abstract: Any) -> Any:
    """Return the model's parameters as numpy arrays, read from a PyTorch state dict.

    Args:
      mapping: the rows that apply.
      tensors: PyTorch tensors by name. Each is read once, when its turn comes.
      abstract: as for `parameters`; here its dtypes are those that numbers are converted to.

    Returns:
      The same pytree with arrays.

    Raises:
      ConversionError: as `parameters`.
    """
    spec, arrays, problems = named_leaves(abstract), {}, []
    for name, parameter in lazy_params(mapping, tensors, abstract).items():
        try:
            arrays[name] = parameter.read().astype(spec[name].dtype, copy=False)
        except ConversionError as error:
            problems += error.problems
    if problems:
        raise ConversionError(tuple(dict.fromkeys(problems)))
    return with_leaves(abstract, arrays)


def lazy_state_dict(mapping: KeyMapping, state: Any, *, tied: bool = True) -> dict[str, LazyArray]:
    """Return a PyTorch state dict whose tensors are made of the model's parameters when they are asked for.

    Args:
      mapping: the rows that apply.
      state: a pytree whose leaves have shapes and dtypes, which the tensors keep, and can be read.
      tied: whether PyTorch's second names of one tensor are given too.

    Raises:
      ConversionError: a parameter has no row or several, or a row's parameter is missing.
    """
    leaves = named_leaves(state)
    slots, problems = _layer_slots(mapping, leaves)
    if problems:
        raise ConversionError(problems)
    cache, lazy_tensors = RowWriterCache(leaves), {}
    for slot in slots:
        dtype = _common_dtype(leaves[param].dtype for param in slot.row.param_names)
        lazy_tensor = LazyArray(_torch_shape(slot, leaves), dtype, partial(cache.tensor, slot))
        for pattern in (slot.row.torch_name, *(slot.row.tied if tied else ())):
            lazy_tensors[slot.torch_name(pattern)] = lazy_tensor
    return lazy_tensors


def iter_state_dict(mapping: KeyMapping, state: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Give the PyTorch state dict's names and tensors one by one, in the table's order; errors as above."""
    for name, tensor in lazy_state_dict(mapping, state).items():
        yield name, tensor.read()


def to_torch(mapping: KeyMapping, state: Any) -> dict[str, np.ndarray]:
    """Return a PyTorch state dict made of the model's parameters."""
    return dict(iter_state_dict(mapping, state))


class RowReader:
    """The parameters of one row, filled together, so that a fused tensor is read once and not once for each part."""

    def __init__(
        self,
        slots: Mapping["TensorSlot", list[str]],
        tensors: Mapping[str, TensorLike],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: np.dtype,
    ):
        self.shapes = shapes
        self._slots, self._tensors, self._dtype = slots, tensors, dtype
        self._params: dict[str, np.ndarray] = {}

    def pop(self, param_name: str) -> np.ndarray:
        """Return one of the parameters; the others stay here until they are taken too."""
        if param_name not in self._params:
            self._params = self._read()
        return self._params.pop(param_name)

    def _read(self) -> dict[str, np.ndarray]:
        arrays = {layer_array: np.empty(shape, self._dtype) for layer_array, shape in self.shapes.items()}
        problems = []
        for slot, (name, *others) in self._slots.items():
            tensor = np.asarray(self._tensors[name])
            if not np.isfinite(tensor).all():
                problems.append(f"{name}: holds numbers that are not finite; the file is damaged, get it again")
            problems += [
                f"{other}: differs from {name}, though both are {' + '.join(slot.row.param_names)}"
                for other in others
                if not np.array_equal(np.asarray(self._tensors[other]), tensor, equal_nan=True)
            ]
            try:
                for param_name, layer_array in zip(
                    slot.row.param_names, slot.row.transform.to_flax(tensor), strict=True
                ):
                    slot.layer_of(arrays[param_name])[...] = layer_array.astype(self._dtype, copy=False)
            except ValueError as error:
                problems.append(f"{name}: {error}")
        if problems:
            raise ConversionError(problems)
        return arrays


class RowWriterCache:
    """The parameters of the row read last: they come from a device or a file once a row, not once a layer."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves
        self._row: MappingRow | None = None
        self._arrays: ParamArrays = ()

    def tensor(self, slot: "TensorSlot") -> np.ndarray:
        """Return what fills a place of the state dict."""
        if self._row is not slot.row:
            self._row, self._arrays = None, ()  # before others come, lest both be in memory
            self._arrays = tuple(np.asarray(self._leaves[param]) for param in slot.row.param_names)
            self._row = slot.row
        return np.ascontiguousarray(slot.row.transform.to_torch(tuple(slot.layer_of(array) for array in self._arrays)))


def _match_tensors(mapping: KeyMapping, tensors: Mapping[str, ArraySpec], abstract: Any) -> dict[TensorSlot, list[str]]:
    """Say which tensors fill which place; the first of each list is to be read, others must equal it."""
    leaves = named_leaves(abstract)
    slots, problems = _layer_slots(mapping, leaves)
    slots_by_name: dict[str, list[TensorSlot]] = {}
    for slot in slots:
        for pattern in slot.row.accepted_names:
            slots_by_name.setdefault(slot.torch_name(pattern), []).append(slot)
    ignored_patterns = [(_glob_pattern(row.torch_name), row) for row in mapping if isinstance(row, IgnoredKey)]
    names_by_slot: dict[TensorSlot, list[str]] = {slot: [] for slot in slots}
    for name, tensor in tensors.items():
        matching_slots = slots_by_name.get(name, [])
        matched_rows = [slot.row.torch_name for slot in matching_slots] + [
            row.torch_name for regex, row in ignored_patterns if regex.fullmatch(name)
        ]
        if len(matched_rows) != 1:
            reason = (
                f"matches {len(matched_rows)} rows: {', '.join(matched_rows)}" if matched_rows else "matches no row"
            )
            problems.append(f"{name} {tuple(tensor.shape)}: {reason}")
        for slot in matching_slots:
            expected_shape = _torch_shape(slot, leaves)
            if tuple(tensor.shape) != expected_shape:
                problems.append(f"{name}: has shape {tuple(tensor.shape)}, the model needs {expected_shape}")
            elif np.dtype(tensor.dtype) not in WEIGHT_DTYPES:
                allowed = ", ".join(map(str, WEIGHT_DTYPES))
                problems.append(f"{name}: has dtype {np.dtype(tensor.dtype)}, the model needs one of {allowed}")
            else:
                names_by_slot[slot].append(name)
    for slot, names in names_by_slot.items():
        names.sort(key=[slot.torch_name(pattern) for pattern in slot.row.accepted_names].index)
        if not any(slot.torch_name(pattern) in tensors for pattern in slot.row.accepted_names):
            accepted = " or ".join(slot.torch_name(pattern) for pattern in slot.row.accepted_names)
            problems.append(f"{accepted} {_torch_shape(slot, leaves)}: missing, for {' + '.join(slot.row.param_names)}")
    if problems:
        raise ConversionError(problems)
    return names_by_slot


def _layer_slots(mapping: KeyMapping, leaves: Mapping[str, Any]) -> tuple[list[TensorSlot], list[str]]:
    """Number the layers of every row, and check that rows and parameters pair up."""
    slots, problems, row_counts = [], [], dict.fromkeys(leaves, 0)
    for row in mapping:
        if isinstance(row, IgnoredKey):
            continue
        missing = [param for param in row.param_names if param not in leaves]
        problems += [f"{param}: the table has it (from {row.torch_name}), the model does not" for param in missing]
        if missing:
            continue
        for param in row.param_names:
            row_counts[param] += 1
        depths = {leaves[param].shape[0] for param in row.param_names} if row.is_stacked else {None}
        slots += [TensorSlot(row, index) for depth in depths for index in ([None] if depth is None else range(depth))]
    problems += [
        f"{name} {tuple(leaves[name].shape)}: {'no row' if count == 0 else f'{count} rows'} of the table for it"
        for name, count in row_counts.items()
        if count != 1
    ]
    return slots, problems


def _torch_shape(slot: TensorSlot, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape a tensor must have, by running the operation on arrays that hold one number."""
    shapes = [leaves[param].shape[slot.index is not None :] for param in slot.row.param_names]
    return slot.row.transform.to_torch(tuple(np.broadcast_to(np.int8(0), shape) for shape in shapes)).shape


def _common_dtype(dtypes: Iterator[Any]) -> np.dtype:
    """Return the dtype of all, or float32."""
    first, *others = {np.dtype(dtype) for dtype in dtypes}
    return np.dtype(np.float32) if others else first


def _glob_pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", ".*"))
