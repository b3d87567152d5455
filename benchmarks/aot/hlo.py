"""Read the text of a compiled program (optimized HLO): its instructions, their shapes, and what they call."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "c64": 8, "token": 0, "opaque": 0} | {
    f"{kind}{bits}": bits / 8 for kind in "su" for bits in (2, 4, 8, 16, 32, 64)
}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^  (ROOT )?%([\w.\-]+) = ")
_CALLED = re.compile(r"\b(calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Shape:
    """An array: `dtype` as XLA writes it ("bf16"), and its dimensions."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        """Bytes of the array; 0 for a dtype that is not known."""
        return self.size * BYTES.get(self.dtype, 0)


@dataclass(frozen=True)
class Instruction:
    """An instruction of a computation.

    Fields:
      name: unique in the program.
      shapes: of its result; several if that is a tuple.
      opcode: such as "fusion".
      operands: names.
      attributes: the rest of the line.
      is_root: whether it is the computation's result.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> float:
        """Bytes of the result."""
        return sum(shape.bytes for shape in self.shapes)

    @cached_property
    def called(self) -> dict[str, str]:
        """Computations by the name of the attribute that calls them; of a switch, by number."""
        called = dict(_CALLED.findall(self.attributes))
        if branches := _BRANCHES.search(self.attributes):
            called |= {str(i): name.strip().lstrip("%") for i, name in enumerate(branches[1].split(","))}
        return called

    @property
    def op_name(self) -> str:
        """The path of named scopes and of the function that jax gives an operation, or ""."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def backend_config(self) -> dict[str, Any]:
        """What the backend added, such as the trip count of a loop."""
        start = self.attributes.find("backend_config=")
        if start < 0:
            return {}
        try:
            value, _ = json.JSONDecoder().raw_decode(self.attributes[start + len("backend_config=") :])
        except json.JSONDecodeError:  # of a custom call that has a notation of its own
            return {}
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Computation:
    """A computation: its instructions in the order in which they are scheduled."""

    name: str
    instructions: Sequence[Instruction]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        """Its instructions by name."""
        return {instruction.name: instruction for instruction in self.instructions}

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """The instructions that use the result of each."""
        users: dict[str, list[Instruction]] = {name: [] for name in self.by_name}
        for instruction in self.instructions:
            for operand in dict.fromkeys(instruction.operands):
                users.setdefault(operand, []).append(instruction)
        return users

    @property
    def root(self) -> Instruction:
        """The instruction whose result is that of the computation."""
        return next(instruction for instruction in self.instructions if instruction.is_root)


@dataclass(frozen=True)
class HloModule:
    """A compiled program: its computations by name, and the name of the one that it begins with."""

    computations: dict[str, Computation]
    entry: str


def parse_hlo(text: str) -> HloModule:
    """Parse the text of a compiled program, `jax.stages.Compiled.as_text()`.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, Computation] = {}
    entry, name, instructions = "", "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name, instructions = header[2], []
            entry = name if header[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, instructions)
            name = ""
        elif name and (start := _INSTRUCTION.match(line)):
            instructions.append(_parse_instruction(start, line[start.end() :]))
    if not entry:
        raise ValueError("not the text of a compiled program: no ENTRY computation")
    return HloModule(computations, entry)


def _parse_instruction(start: re.Match[str], rest: str) -> Instruction:
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:shape_end], rest[shape_end:].lstrip()
    opening = call.index("(")
    closing = _closing(call, opening)
    return Instruction(
        name=start[2],
        shapes=tuple(
            Shape(dtype, tuple(int(d) for d in dims.split(",") if d)) for dtype, dims in _ARRAY.findall(shape)
        ),
        opcode=call[:opening],
        operands=tuple(re.findall(r"%([\w.\-]+)", call[opening:closing])),
        attributes=call[closing + 1 :],
        is_root=bool(start[1]),
    )


def _closing(text: str, opening: int) -> int:
    """Return the index of the bracket that closes the one at `opening`."""
    depth = 0
    for index in range(opening, len(text)):
        depth += (text[index] == "(") - (text[index] == ")")
        if depth == 0:
            return index
    raise ValueError(f"a bracket is not closed: {text[opening : opening + 80]}")
