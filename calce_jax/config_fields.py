"""Fields of frozen dataclasses that say what they may be: `Annotated[int, Range(1), "what it means"]`.

A field's type is a number, a text, a bool, a tuple of ints, a `Literal` of its choices, or another such dataclass, a
group of fields. The annotations are read to check plain values, and to describe a field to people.
"""

import dataclasses
import difflib
import types
import typing
from typing import Annotated, Any, Literal

MAX_INT = 2**63 - 1  # of a field; numpy and JAX have no greater ones


@dataclasses.dataclass(frozen=True)
class Range:
    """Bounds of a number, both included."""

    low: int | float
    high: int | float = float("inf")

    def allows(self, value: Any) -> bool:
        """Return whether a number is within the bounds."""
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f">= {self.low:g}" if self.high == float("inf") else f"in [{self.low:g}, {self.high:g}]"


@dataclasses.dataclass(frozen=True)
class Choices:
    """The texts that a field can have, where a `Literal` cannot list them."""

    names: tuple[str, ...]

    def allows(self, value: Any) -> bool:
        """Return whether a text is one of them."""
        return value in self.names

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.names))


def parse_dataclass(cls: Any, values: Any, path: str, errors: list[str]) -> Any:
    """Parse one dataclass and append what is wrong to `errors`; the result is incomplete if anything was."""
    if not hasattr(values, "items"):
        errors.append(f"{path}: must be a group of fields, got {values!r}")
        return None
    values = dict(values.items())
    hints = typing.get_type_hints(cls, include_extras=True)
    for unknown in values.keys() - hints.keys():
        close_matches = difflib.get_close_matches(str(unknown), hints, n=1)
        suggestion = f"did you mean {close_matches[0]!r}? " if close_matches else ""
        errors.append(f"{path}.{unknown}: no such field; {suggestion}its fields are {', '.join(hints)}")
    parsed = {}
    optional = {field.name for field in dataclasses.fields(cls) if field.default is not dataclasses.MISSING}
    for field, hint in hints.items():
        field_path = f"{path}.{field}"
        if field not in values and field in optional:
            continue
        if field not in values:
            errors.append(f"{field_path}: missing; must be {describe_type(hint)}")
        elif dataclasses.is_dataclass(hint):
            parsed[field] = parse_dataclass(hint, values[field], field_path, errors)
        else:
            parsed[field] = _parse_value(hint, values[field], field_path, errors)
    return None if errors else cls(**parsed)


def _parse_value(hint: Any, value: Any, name: str, errors: list[str]) -> Any:
    value_type, bounds, _ = split_hint(hint)
    numbers = value if isinstance(value, list | tuple) else [value]
    if any(type(number) is int and abs(number) > MAX_INT for number in numbers):
        errors.append(f"{name}: must fit in 64 bits, got {value!r:.60}")
        return value
    if value_type == tuple[int, ...] and isinstance(value, list | tuple):
        value = tuple(value)
        is_valid = all(type(item) is int for item in value)
    elif typing.get_origin(value_type) is Literal:
        is_valid = any(value == choice and type(value) is type(choice) for choice in typing.get_args(value_type))
    elif value_type is float and type(value) is int:
        value, is_valid = float(value), True
    else:
        is_valid = isinstance(value_type, type) and type(value) is value_type
    if not is_valid or (bounds is not None and not bounds.allows(value)):
        errors.append(f"{name}: must be {describe_type(hint)}, got {value!r:.100}")
    return value


def split_hint(hint: Any) -> tuple[Any, Range | Choices | None, str]:
    """Return the type of a field, its bounds, and its meaning, which may be empty."""
    if typing.get_origin(hint) is not Annotated:
        return hint, None, ""
    value_type, *metadata = typing.get_args(hint)
    bounds = next((item for item in metadata if isinstance(item, Range | Choices)), None)
    return value_type, bounds, next((item for item in metadata if isinstance(item, str)), "")


def describe_type(hint: Any) -> str:
    """Return what a field may be: "an int >= 1", "one of 1, 2"."""
    value_type, bounds, _ = split_hint(hint)
    if isinstance(bounds, Choices):
        return str(bounds)
    if bounds is not None:
        return f"{describe_type(value_type)} {bounds}"
    if typing.get_origin(value_type) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(value_type)))
    if isinstance(value_type, types.GenericAlias):
        return "a tuple of ints"
    if dataclasses.is_dataclass(value_type):
        return "a group of fields"
    return f"{'an' if value_type is int else 'a'} {value_type.__name__}"
