"""The cases to compile: programs of runs on targets, each with the bytes of a chip that it may take."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.aot.programs import program_names
from benchmarks.aot.targets import GIB, TARGETS
from calce_jax.presets.runs import get_preset

RUNS = ("qvhighlights,stage=1", "qvhighlights,stage=2", "charades_sta,stage=1", "charades_sta,stage=2")
# Memory by number of chips, for the first run only; not compiled by default.
SCALING_TARGETS = ("a100x1", "a100x16", "a100x256")
# Half of the memory, all of which the original needs.
BUDGET_OVERRIDES = {("a100x4", "qvhighlights,stage=1", "train_step"): 40 * GIB}


@dataclass(frozen=True)
class CompileCase:
    """One program to compile.

    Fields:
      target: a key of `benchmarks.aot.targets.TARGETS`.
      run: name of a preset.
      program: a key of `benchmarks.aot.programs.PROGRAMS`.
      budget: bytes of one chip; its memory, or `BUDGET_OVERRIDES`.
    """

    target: str
    run: str
    program: str
    budget: int

    @property
    def name(self) -> str:
        """Name of run and program in the report, such as "qvhighlights/stage1/train_step"."""
        return f"{self.run.replace(',stage=', '/stage')}/{self.program}"


def cases() -> Iterator[CompileCase]:
    """Yield all cases: all programs on four chips and on more or fewer A100, inference on a GPU of 24 GiB."""
    for target in TARGETS.values():
        for run in RUNS[:1] if target.name in SCALING_TARGETS else RUNS:
            for program in program_names(get_preset(run)):
                if target.name == "gpu24" and program.startswith("train_"):
                    continue
                yield CompileCase(
                    target.name, run, program, BUDGET_OVERRIDES.get((target.name, run, program), target.memory)
                )
