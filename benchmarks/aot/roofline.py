"""What the operations of a compiled program cost on an A100 at best, by the part of the model that they belong to.

An operation takes at least as long as its products at the peak of their dtype, and as its operands and results at the
peak of the memory; whichever is longer. Nothing is executed: operations, shapes and the number of iterations of loops
are read from the program. The sum over operations bounds the time of a step from below, if collectives overlap with it.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from benchmarks.aot.hlo import Computation, HloModule, Instruction, Shape

# Named scopes of the model and the training step (`jax.named_scope`); an operation belongs to the innermost.
PARTS = ("vit", "qformer", "selection", "captions", "prompt", "t5_encoder", "t5_decoder", "loss", "optimizer")
OTHER = "other"
_PART = re.compile(r"(?<!\w)(" + "|".join(PARTS) + r")(?!\w)")

# A100-SXM4-80GB, from NVIDIA's datasheet: FLOP/s of products by dtype, TF32 only where a program allows it; bytes/s of
# the memory, and of NVLink in one direction.
PEAK_FLOP_PER_S = {"bf16": 312e12, "f16": 312e12, "tf32": 156e12, "f32": 19.5e12}
MEMORY_BYTES_PER_S = 2.039e12
LINK_BYTES_PER_S = 300e9

_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
_FREE |= {"opt-barrier", "iota"}
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


@dataclass(frozen=True)
class Operation:
    """An operation of a program on one chip, all its executions together.

    Fields:
      part: of the model, one of `PARTS` or `OTHER`.
      is_backward: whether it belongs to the gradient; what `remat` computes again counts as forward.
      kind: "product", "copy" (which computes nothing), "collective", or "element-wise" for the rest.
      name: the opcode, of a collective.
      count: executions.
      flop: of products.
      bytes: of operands and results.
      received: bytes from other chips.
      seconds: at least, without what is received.
      hidden: seconds of other operations between the start and the end of a collective.
    """

    part: str
    is_backward: bool
    kind: str
    name: str
    count: int
    flop: float
    bytes: float
    received: float
    seconds: float
    hidden: float = 0.0


def operations(module: HloModule, *, while_trip_count: int = 1) -> list[Operation]:
    """Return the operations of a program.

    Args:
      module: from `benchmarks.aot.hlo.parse_hlo`.
      while_trip_count: assumed iterations of loops whose number the compiler does not know, such as beam search.
    """
    return list(_Walk(module, while_trip_count).computation(module.entry, 1, OTHER))


@dataclass(frozen=True)
class _Walk:
    module: HloModule
    while_trip_count: int

    def computation(self, name: str, count: int, part: str) -> Iterator[Operation]:
        """Yield the operations of a computation that is executed `count` times by an operation of `part`."""
        computation = self.module.computations[name]
        costs = [list(self.instruction(each, computation, count, part)) for each in computation.instructions]
        position = {each.name: index for index, each in enumerate(computation.instructions)}
        for index, (instruction, found) in enumerate(zip(computation.instructions, costs, strict=True)):
            if found and found[0].kind == "collective":
                ends = [position[user.name] for user in computation.users[instruction.name]]
                # One that is not split into start and end waits where it stands.
                end = min(ends, default=index) if instruction.opcode.endswith("-start") else index
                hidden = sum(each.seconds for between in costs[index + 1 : end] for each in between)
                yield from (replace(each, hidden=hidden) for each in found)
            else:
                yield from found

    def instruction(self, each: Instruction, inside: Computation, count: int, part: str) -> Iterator[Operation]:
        """Yield what one instruction costs."""
        part = _part(each.op_name) or part
        if each.opcode == "while":
            trips = each.backend_config.get("known_trip_count", {}).get("n", self.while_trip_count)
            yield from self.computation(each.called["body"], count * int(trips), part)
        elif each.opcode == "conditional":
            branches = [list(self.computation(name, count, part)) for name in each.called.values()]
            yield from max(branches, key=lambda found: sum(operation.seconds for operation in found), default=[])
        elif each.opcode in ("call", "async-start"):
            for name in each.called.values():
                yield from self.computation(name, count, part)
        elif each.opcode.removesuffix("-start") in _COLLECTIVES:
            yield _collective(each, inside, count, part)
        elif each.opcode not in _FREE and not each.opcode.endswith(("-done", "-update")):
            yield self._kernel(each, inside, count, part)

    def _kernel(self, each: Instruction, inside: Computation, count: int, part: str) -> Operation:
        fused = self.module.computations.get(each.called.get("calls", "")) if each.opcode == "fusion" else None
        moved = _fusion_bytes(each, inside, fused) if fused else _bytes(each, inside)
        products = [
            _product(one, body)
            for body, ones in ((inside, [each]), *([(fused, fused.instructions)] if fused else ()))
            for one in ones
        ]
        flop = sum(found[0] for found in products)
        seconds = max(sum(found[1] for found in products), moved / MEMORY_BYTES_PER_S)
        is_copy = each.opcode in ("copy", "transpose") or (
            fused is not None
            and all(one.opcode in _FREE | {"copy", "transpose", "reshape"} for one in fused.instructions)
        )
        return Operation(
            part=part,
            is_backward="transpose(" in each.op_name,
            kind="product" if flop else "copy" if is_copy else "element-wise",
            name=each.opcode,
            count=count,
            flop=count * flop,
            bytes=count * moved,
            received=0.0,
            seconds=count * seconds,
        )


def _part(op_name: str) -> str:
    return ["", *_PART.findall(op_name)][-1]


def _operand_shapes(each: Instruction, inside: Computation) -> list[tuple[Shape, ...]]:
    return [inside.by_name[name].shapes for name in each.operands if name in inside.by_name]


def _size(shapes: Sequence[Shape]) -> float:
    return sum(shape.bytes for shape in shapes)


def _bytes(each: Instruction, inside: Computation) -> float:
    """Return the bytes that an operation outside a fusion reads and writes."""
    if each.opcode in ("dynamic-slice", "gather", "slice"):
        return 2 * each.bytes
    operands = _operand_shapes(each, inside)
    if each.opcode == "dynamic-update-slice":
        return 2 * _size(operands[1])
    # Work space of a library's product is not counted.
    results = each.shapes[:1] if each.opcode == "custom-call" else each.shapes
    return _size(results) + sum(map(_size, operands))


def _fusion_bytes(each: Instruction, inside: Computation, fused: Computation) -> float:
    """Return the bytes that a fusion reads and writes: of an operand of which it takes slices, the slices."""
    parameters = [one for one in fused.instructions if one.opcode == "parameter"]
    updated, read = 0.0, 0.0
    for parameter in parameters:
        users = _users_of(parameter, fused)
        if users and all(user.opcode in ("dynamic-slice", "gather", "slice") and first for user, first in users):
            read += sum(user.bytes for user, _ in users)
        elif users and all(user.opcode == "dynamic-update-slice" and first for user, first in users):
            # Updated in place: the update is written.
            updated += sum(_size(fused.by_name[user.operands[1]].shapes) - user.bytes for user, _ in users)
        else:
            read += parameter.bytes
    return max(each.bytes + updated, 0.0) + read


def _users_of(value: Instruction, inside: Computation) -> list[tuple[Instruction, bool]]:
    """Return who uses a value, through bitcasts, and whether as the first operand alone."""
    users = []
    for user in inside.users[value.name]:
        if user.opcode == "bitcast":
            users += _users_of(user, inside)
        else:
            users.append((user, user.operands[0] == value.name and value.name not in user.operands[1:]))
    return users


def _product(each: Instruction, inside: Computation) -> tuple[float, float]:
    """Return the FLOP of a matrix product and its seconds at the peak; 0 for any other operation."""
    config = each.backend_config.get("gemm_backend_config", {})
    dimensions = config.get("dot_dimension_numbers", {})
    contracted = dimensions.get("lhs_contracting_dimensions")
    precision = config.get("precision_config", {}).get("operand_precision", [])
    if each.opcode == "dot":
        found = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", each.attributes)
        contracted = found[1].split(",") if found else []
        precision = re.findall(r"operand_precision=\{(\w+)", each.attributes)
    if contracted is None or not each.operands:
        return 0.0, 0.0
    left = _operand_shapes(each, inside)[0][0]
    flop = 2.0 * each.shapes[0].size
    for dimension in contracted:
        flop *= left.dims[int(dimension)]
    dtype = left.dtype
    if dtype == "f32" and "HIGHEST" not in [name.upper() for name in precision]:
        dtype = "tf32"
    return flop, flop / PEAK_FLOP_PER_S.get(dtype, PEAK_FLOP_PER_S["f32"])


def _collective(each: Instruction, inside: Computation, count: int, part: str) -> Operation:
    kind = each.opcode.removesuffix("-start")
    sent = sum(map(_size, _operand_shapes(each, inside)))
    # The result of a start has the operands in it.
    result = each.bytes - sent if each.opcode.endswith("-start") and len(each.shapes) > 1 else each.bytes
    received = {
        "all-gather": result - sent,
        "reduce-scatter": sent - result,
        # A ring first reduces, then gathers; each time a chip has its own share already.
        "all-reduce": 2 * sent * (1 - 1 / _group_size(each)),
    }.get(kind, sent)
    return Operation(
        part=part,
        is_backward="transpose(" in each.op_name,
        kind="collective",
        name=kind,
        count=count,
        flop=0.0,
        bytes=count * (sent + result),
        received=count * max(received, 0.0),
        seconds=0.0,
    )


def _group_size(each: Instruction) -> float:
    """Return how many chips a collective joins: from {{0,1},{2,3}} or [2,2]<=[4], both of groups of two."""
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", each.attributes)
    counted = re.search(r"replica_groups=\[\d+,(\d+)\]", each.attributes)
    if listed:
        return len(listed[1].split(","))
    # Of all chips, however many they are.
    return int(counted[1]) if counted else math.inf
