"""Compile one case and measure its memory, FLOPs and compile time."""

import dataclasses
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from benchmarks.aot.budgets import CompileCase
from benchmarks.aot.flops import count_flops
from benchmarks.aot.programs import PROGRAMS, AbstractRun, Program, bytes_on_a_device
from benchmarks.aot.targets import TARGETS, mesh_for
from calce_jax.config import RunConfig
from calce_jax.distributed.compiler_options import compiler_options


@dataclass(frozen=True)
class ReportRow:
    """A row of the report; sizes are None if compilation failed.

    Fields:
      target, program: `CompileCase.target` and `CompileCase.name`.
      bytes_per_chip: peak memory of a chip: arguments, used or not, outputs that do not alias them, temporaries, and
        what a run has there beside them.
      budget: of `bytes_per_chip`.
      temp_bytes: the temporaries.
      resident_bytes: the window of encoded batches that a grouped batch is of, see `benchmarks.aot.programs.Program`.
      flops: of matrix products, over all chips; of generation, with the longest answer.
      compile_seconds: without tracing and lowering.
      ok: it was compiled and is within the budget.
      error: why it was not compiled, or "".
    """

    target: str
    program: str
    bytes_per_chip: int | None
    budget: int
    temp_bytes: int | None
    resident_bytes: int | None
    flops: int | None
    compile_seconds: float | None
    ok: bool
    error: str = ""

    def line(self) -> str:
        """Return the row as a line of text."""
        head = f"{self.target:10} {self.program:32}"
        if self.bytes_per_chip is None or self.temp_bytes is None or self.flops is None:
            return f"{head} FAILED  {self.error}"
        return (
            f"{head} {self.bytes_per_chip / 2**30:6.2f} of {self.budget / 2**30:3.0f} GiB a chip "
            f"({self.temp_bytes / 2**30:6.2f} temporary, {(self.resident_bytes or 0) / 2**30:.2f} of a window)  "
            f"{self.flops / 1e12:8.1f} TFLOP  "
            f"{self.compile_seconds:6.1f} s  {'ok' if self.ok else 'OVER BUDGET'}"
        )


def failed_row(case: CompileCase, error: str) -> ReportRow:
    """Return the row of a case that was not compiled."""
    return ReportRow(case.target, case.name, None, case.budget, None, None, None, None, ok=False, error=error)


class CompiledCase(NamedTuple):
    """A compiled case: the program, traced and compiled, and the seconds that compiling took."""

    program: Program
    traced: Any
    compiled: Any
    seconds: float


def compile_case(case: CompileCase, config: RunConfig) -> CompiledCase:
    """Compile a case.

    Args:
      case: program and target.
      config: of its run; the mesh is that of the target.

    Raises:
      MissingCompilerError: the compiler of the target is not installed.
    """
    target = TARGETS[case.target]
    mesh = mesh_for(target)
    with jax.set_mesh(mesh):
        abstract_run = AbstractRun(scale_batch_to_chips(config, target.chips), mesh)
        program = PROGRAMS[case.program](abstract_run)
        traced = program.function.trace(*program.arguments)
        lowered = traced.lower()
        start = time.perf_counter()
        options = compiler_options(mesh, config.model.frozen_dtype) or {}
        compiled = lowered.compile(compiler_options=options | dict(target.options))
        return CompiledCase(program, traced, compiled, time.perf_counter() - start)


def measure(case: CompileCase, config: RunConfig) -> ReportRow:
    """Compile a case and return its row; arguments and errors as of `compile_case`."""
    program, traced, compiled, seconds = compile_case(case, config)
    memory = compiled.memory_analysis()
    argument_bytes = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    # A program does not get arguments that it does not use, such as the weights of a tower; they are there too.
    unused_bytes = max(bytes_on_a_device(program.arguments) - memory.argument_size_in_bytes, 0)
    total = argument_bytes + unused_bytes + memory.temp_size_in_bytes + program.resident_bytes
    return ReportRow(
        case.target,
        case.name,
        total,
        case.budget,
        memory.temp_size_in_bytes,
        program.resident_bytes,
        count_flops(traced.jaxpr, while_trip_count=program.decoding_steps),
        round(seconds, 1),
        ok=total <= case.budget,
    )


def scale_batch_to_chips(config: RunConfig, chips: int) -> RunConfig:
    """Return the config with its batches, which are for four chips, scaled to `chips`, and its longest prompt length.

    A run compiles a branch for each prompt length. Only one runs at a time and all share their memory, so that the
    longest one determines it, and compiles in a quarter of the time.
    """
    data = config.data
    batch, eval_batch = (max(1, size * chips // 4) for size in (data.batch, data.eval_batch))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, batch=batch, eval_batch=eval_batch),
        text=dataclasses.replace(config.text, buckets=config.text.buckets[-1:]),
    )
