"""Conversion between PyTorch state dicts and Flax parameters by a mapping, a sequence of rows.

Both directions use the same rows, so a round trip is bit-exact. Names, shapes and dtypes are checked before the first
tensor is read, and all errors are reported together.

This needs numpy alone, not PyTorch. `lazy_params` and `lazy_state_dict` read nothing by themselves, and later the
tensors of one row at a time, so that a model is never in memory as a whole.
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
    """Anything with a shape and a dtype."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        ...

    @property
    def dtype(self) -> Any:
        """Dtype of the array."""
        ...


@runtime_checkable
class TensorLike(ArraySpec, Protocol):
    """An array, or a handle on one (such as a slice of a file) that is read by `np.asarray`."""

    def __array__(self) -> np.ndarray:
        """Read the array."""
        ...


@dataclass(frozen=True)
class LazyArray:
    """An array that is not in memory, or not computed; `read` returns it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Read the array."""
        return np.asarray(self.read(), dtype)


class ConversionError(UserError):
    """Names, shapes, dtypes or values of weights do not fit the model.

    Attributes:
      problems: one line for each.
    """

    def __init__(self, problems: Sequence[str]):
        self.problems = tuple(problems)
        super().__init__("\n  ".join([f"weights do not fit the model in {len(problems)} places:", *problems]))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.problems,)


@dataclass(frozen=True)
class TensorSlot:
    """The tensor of one layer: a row of the mapping, and the index on the leading axis if the row is stacked."""

    row: MappingRow
    index: int | None

    def torch_name(self, pattern: str) -> str:
        """Return a PyTorch name of the row with the layer's number filled in."""
        return (
            pattern
            if self.index is None
            else pattern.replace(LAYER_PLACEHOLDER, str(self.index * self.row.layer_stride))
        )

    def layer_of(self, array: Any) -> Any:
        """Return this layer's slice of a parameter."""
        return array if self.index is None else array[self.index]


def check_state_dict(mapping: KeyMapping, tensors: Mapping[str, ArraySpec], abstract: Any) -> None:
    """Check names, shapes and dtypes of a PyTorch state dict against a model.

    Args:
      mapping: rows for all tensors and all parameters.
      tensors: tensors, or anything else with a shape and a dtype, by PyTorch name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have shapes.

    Raises:
      ConversionError: a tensor matches no row or several, is missing, has a wrong shape, or is not floating-point; a
        parameter has no row or several. All problems are listed.
    """
    _match_tensors(mapping, tensors, abstract)


def matches_any(mapping: KeyMapping, tensors: Mapping[str, Any]) -> bool:
    """Return whether any of the names in `tensors` is read by a row of the mapping."""
    patterns = [
        re.compile(re.escape(name).replace(re.escape(LAYER_PLACEHOLDER), r"\d+"))
        for row in mapping_rows(mapping)
        for name in row.accepted_names
    ]
    return any(pattern.fullmatch(name) for name in tensors for pattern in patterns)


def lazy_params(mapping: KeyMapping, tensors: Mapping[str, TensorLike], abstract: Any) -> dict[str, LazyArray]:
    """Return a model's parameters by name, each read from a PyTorch state dict on demand.

    Args:
      mapping: rows for all tensors and all parameters.
      tensors: PyTorch tensors by name.
      abstract: a pytree (an `nnx.State`, a module) whose leaves have the parameters' shapes, such as
        `nnx.state(nnx.eval_shape(...))`. Its dtypes are ignored: parameters keep the dtype of their tensors, or are
        float32 where the layers of one parameter differ.

    Raises:
      ConversionError: as `check_state_dict`; and on reading, if tied tensors differ, if a tensor holds NaN or infinity,
        or if it cannot be represented in the model.
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
    """Convert a PyTorch state dict to a model's parameters.

    Args:
      mapping: rows for all tensors and all parameters.
      tensors: PyTorch tensors by name; each is read once, one row after the other.
      abstract: as for `lazy_params`; parameters are cast to its dtypes.

    Returns:
      The pytree `abstract` with numpy arrays.

    Raises:
      ConversionError: as `lazy_params`.
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
    """Return a PyTorch state dict whose tensors are converted from a model's parameters on demand.

    Args:
      mapping: rows for all parameters.
      state: a pytree of arrays; tensors keep its dtypes.
      tied: whether to include the tied names of the rows.

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
    """Yield (name, tensor) of `lazy_state_dict`, read one by one in the order of the mapping."""
    for name, tensor in lazy_state_dict(mapping, state).items():
        yield name, tensor.read()


def to_torch(mapping: KeyMapping, state: Any) -> dict[str, np.ndarray]:
    """Convert a model's parameters to a PyTorch state dict of numpy arrays; raises as `lazy_state_dict`."""
    return dict(iter_state_dict(mapping, state))


class RowReader:
    """Reads the parameters of one row together, so that a fused tensor is read once and not once per parameter."""

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
        """Return one of the row's parameters; the others are kept until they are popped."""
        if param_name not in self._params:
            self._params = self._read()
        return self._params.pop(param_name)

    def _read(self) -> dict[str, np.ndarray]:
        arrays = {param_name: np.empty(shape, self._dtype) for param_name, shape in self.shapes.items()}
        problems = []
        for slot, (name, *others) in self._slots.items():
            tensor = np.asarray(self._tensors[name])
            if not np.isfinite(tensor).all():
                problems.append(f"{name}: holds NaN or infinity; the file is damaged, get it again")
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
    """Caches the parameters of one row, so that they are read from a device or file once, not once per layer."""

    def __init__(self, leaves: Mapping[str, Any]):
        self._leaves = leaves
        self._row: MappingRow | None = None
        self._arrays: ParamArrays = ()

    def tensor(self, slot: "TensorSlot") -> np.ndarray:
        """Return the PyTorch tensor of one layer."""
        if self._row is not slot.row:
            self._row, self._arrays = None, ()  # freed before the next row is read
            self._arrays = tuple(np.asarray(self._leaves[param]) for param in slot.row.param_names)
            self._row = slot.row
        return np.ascontiguousarray(slot.row.transform.to_torch(tuple(slot.layer_of(array) for array in self._arrays)))


def _match_tensors(mapping: KeyMapping, tensors: Mapping[str, ArraySpec], abstract: Any) -> dict[TensorSlot, list[str]]:
    """Return the names of the tensors for each layer; the first is read, and the others must equal it."""
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
    """Return the layers of all rows, and the problems where parameters do not have exactly one row."""
    slots, problems, row_counts = [], [], dict.fromkeys(leaves, 0)
    for row in mapping:
        if isinstance(row, IgnoredKey):
            continue
        missing = [param for param in row.param_names if param not in leaves]
        problems += [f"{param}: the mapping has it (from {row.torch_name}), the model does not" for param in missing]
        if missing:
            continue
        for param in row.param_names:
            row_counts[param] += 1
        depths = {leaves[param].shape[0] for param in row.param_names} if row.is_stacked else {None}
        slots += [TensorSlot(row, index) for depth in depths for index in ([None] if depth is None else range(depth))]
    problems += [
        f"{name} {tuple(leaves[name].shape)}: {'no row' if count == 0 else f'{count} rows'} of the mapping for it"
        for name, count in row_counts.items()
        if count != 1
    ]
    return slots, problems


def _torch_shape(slot: TensorSlot, leaves: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of a layer's tensor, by transforming broadcast arrays of one element."""
    shapes = [leaves[param].shape[slot.index is not None :] for param in slot.row.param_names]
    return slot.row.transform.to_torch(tuple(np.broadcast_to(np.int8(0), shape) for shape in shapes)).shape


def _common_dtype(dtypes: Iterator[Any]) -> np.dtype:
    """Return the dtype if all are equal, else float32."""
    first, *others = {np.dtype(dtype) for dtype in dtypes}
    return np.dtype(np.float32) if others else first


def _glob_pattern(glob: str) -> re.Pattern[str]:
    return re.compile(re.escape(glob).replace(r"\*", ".*"))
