"""One program compiled and measured, as a row of the report."""

import dataclasses
import time
from dataclasses import dataclass

import jax

from benchmarks.aot.budgets import CompileCase
from benchmarks.aot.flops import count_flops
from benchmarks.aot.programs import PROGRAMS, AbstractRun
from benchmarks.aot.targets import TARGETS, mesh_for
from calce_jax.config import RunConfig


@dataclass(frozen=True)
class ReportRow:
    """A row of the report; the sizes are None where nothing was compiled.

    Fields:
      target, program: see `Case`.
      bytes_per_chip: what the program holds at most on each chip: arguments, results that take no argument's place, and
        what it needs in between.
      budget: of `bytes_per_chip`.
      temp_bytes: what it needs in between, of these.
      flops: of matrix products, over all chips; of generation, for the longest answer.
      compile_seconds: from the lowered program to the compiled one.
      ok: it was compiled and keeps to the budget.
      error: why it was not compiled, or "".
    """

    target: str
    program: str
    bytes_per_chip: int | None
    budget: int
    temp_bytes: int | None
    flops: int | None
    compile_seconds: float | None
    ok: bool
    error: str = ""

    def line(self) -> str:
        """Return the row for people."""
        head = f"{self.target:10} {self.program:32}"
        if self.bytes_per_chip is None or self.temp_bytes is None or self.flops is None:
            return f"{head} FAILED  {self.error}"
        return (
            f"{head} {self.bytes_per_chip / 2**30:6.2f} of {self.budget / 2**30:3.0f} GiB a chip "
            f"({self.temp_bytes / 2**30:6.2f} temporary)  {self.flops / 1e12:8.1f} TFLOP  "
            f"{self.compile_seconds:6.1f} s  {'ok' if self.ok else 'OVER BUDGET'}"
        )


def failed_row(case: CompileCase, error: str) -> ReportRow:
    """Return the row of a case that could not be compiled."""
    return ReportRow(case.target, case.name, None, case.budget, None, None, None, ok=False, error=error)


def measure(case: CompileCase, config: RunConfig) -> ReportRow:
    """Compile a case.

    Args:
      case: what to compile, and for what.
      config: of its run; the mesh is the target's.

    Raises:
      MissingCompiler: the target's compiler is not installed.
    """
    target = TARGETS[case.target]
    mesh = mesh_for(target)
    with jax.set_mesh(mesh):
        abstract_run = AbstractRun(scale_batch_to_chips(config, target.chips), mesh)
        program, arguments = PROGRAMS[case.program](abstract_run)
        traced = program.trace(*arguments)
        lowered = traced.lower()
        start = time.perf_counter()
        compiled = lowered.compile(compiler_options=dict(target.options))
        seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    total = held + memory.temp_size_in_bytes
    return ReportRow(
        case.target,
        case.name,
        total,
        case.budget,
        memory.temp_size_in_bytes,
        count_flops(traced.jaxpr, while_trip_count=config.text.answer_tokens),
        round(seconds, 1),
        ok=total <= case.budget,
    )


def scale_batch_to_chips(config: RunConfig, chips: int) -> RunConfig:
    """Return the config with batches that the chips can share, and with the longest of its prompt lengths alone.

    The config's batches are for four chips. A run compiles its programs with a branch for each prompt length; only one
    branch runs, in memory that all of them share, so the longest alone tells how much that is, in a fourth of the time.
    """
    data = config.data
    batch, eval_batch = (max(1, size * chips // 4) for size in (data.batch, data.eval_batch))
    return dataclasses.replace(
        config,
        data=dataclasses.replace(data, batch=batch, eval_batch=eval_batch),
        text=dataclasses.replace(config.text, buckets=config.text.buckets[-1:]),
    )
