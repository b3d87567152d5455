"""What each part of the model costs on an A100 at best, from compiled programs: `python -m benchmarks.aot.parts`.

    PYTHONPATH=.venv/compilers python -m benchmarks.aot.parts --run=qvhighlights,stage=1 --program=train_step

Prints a table for each program, in Markdown: docs/scaling.md says what the columns mean. Programs are those of four
A100, compiled as in a run but without Triton's products, which are chosen on the device.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from absl import app, flags

from benchmarks.aot.budgets import RUNS, CompileCase
from benchmarks.aot.hlo import parse_hlo
from benchmarks.aot.measure import compile_case
from benchmarks.aot.programs import PROGRAMS
from benchmarks.aot.roofline import LINK_BYTES_PER_S, OTHER, PARTS, PEAK_FLOP_PER_S, Operation, operations
from benchmarks.aot.targets import MissingCompilerError
from calce_jax.presets.runs import get_preset

# Unlike the targets of `benchmarks.aot`, at the compiler's usual effort.
TARGET = "a100x4"
HEADER = ("part", "TFLOP", "GB", "FLOP per byte", "ms at least", "of it products", "GB received", "ms of links")
RUN = flags.DEFINE_multi_enum("run", list(RUNS[:2]), list(RUNS), "only these; may be repeated")
PROGRAM = flags.DEFINE_multi_enum(
    "program", ["infer_encode", "train_step", "infer_predict"], list(PROGRAMS), "only these; may be repeated"
)


def main(argv: list[str]) -> None:
    """Compile the programs and print a table of each."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    for run in RUN.value:
        for name in PROGRAM.value:
            try:
                program, _, compiled, _ = compile_case(CompileCase(TARGET, run, name, 0), get_preset(run))
            except MissingCompilerError as error:
                raise SystemExit(str(error)) from error
            found = operations(parse_hlo(compiled.as_text()), while_trip_count=program.decoding_steps)
            print("\n".join([f"\n{run} {name}\n", *table(found)]), flush=True)


def table(found: Sequence[Operation]) -> Iterator[str]:
    """Yield the lines of the table of a program's operations."""
    by_part: dict[tuple[str, bool], list[Operation]] = defaultdict(list)
    for operation in found:
        by_part[operation.part, operation.is_backward].append(operation)
    yield "| " + " | ".join(HEADER) + " |"
    yield "|---" * len(HEADER) + "|"
    for part in (*PARTS, OTHER):
        for is_backward in (False, True):
            if rows := by_part.get((part, is_backward)):
                yield _line(part + (", gradient" if is_backward else ""), rows)
    yield _line("all", found)
    ideal = sum(row.flop for row in found) / PEAK_FLOP_PER_S["bf16"]
    yield ""
    share = ideal / sum(row.seconds for row in found)
    yield f"At most {share:.0%} of the peak of bfloat16, with what is computed again, if all collectives are hidden."
    for (part, name), rows in sorted(_collectives(found).items()):
        exposed = sum(max(row.received / LINK_BYTES_PER_S - row.hidden, 0.0) for row in rows)
        yield (
            f"* {part}: {sum(row.count for row in rows)} {name}, {sum(row.received for row in rows) / 1e9:.2f} GB, "
            f"{1e3 * exposed:.1f} ms of it with no other operation between start and end"
        )


def _collectives(found: Sequence[Operation]) -> dict[tuple[str, str], list[Operation]]:
    by_name: dict[tuple[str, str], list[Operation]] = defaultdict(list)
    for operation in found:
        # Masks, counts and norms are not worth a line.
        if operation.received >= 1e7:
            by_name[operation.part, operation.name].append(operation)
    return by_name


def _line(part: str, rows: Sequence[Operation]) -> str:
    flop, moved = sum(row.flop for row in rows), sum(row.bytes for row in rows if row.kind != "collective")
    received = sum(row.received for row in rows)
    products = sum(row.seconds for row in rows if row.kind == "product")
    cells = (
        part,
        f"{flop / 1e12:.2f}",
        f"{moved / 1e9:.1f}",
        f"{flop / moved:.0f}" if moved else "",
        f"{1e3 * sum(row.seconds for row in rows):.1f}",
        f"{1e3 * products:.1f}",
        f"{received / 1e9:.2f}",
        f"{1e3 * received / LINK_BYTES_PER_S:.1f}",
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    app.run(main)
