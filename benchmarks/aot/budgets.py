"""What has to fit where: every program of every run on every target, with the most bytes that it may take of a chip."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.aot.targets import GIB, TARGETS

RUNS = ("qvh,stage=1", "qvh,stage=2", "charades,stage=1", "charades,stage=2")
PROGRAMS = ("train_step", "vision_encode", "generate")
# How memory changes with the number of chips; one run tells. Compiled when asked for.
SCALING_TARGETS = ("a100x1", "a100x16", "a100x256")
# Half of the card: the original needs all of it for this.
BUDGET_OVERRIDES = {("a100x4", "qvh,stage=1", "train_step"): 40 * GIB}


@dataclass(frozen=True)
class CompileCase:
    """One program to compile.

    Fields:
      target: a key of `EXPORT_FORMATS`.
      run: the argument of `configs/calce.py`.
      program: a key of `PROGRAMS`.
      budget: the most bytes of one chip; that of its memory, unless less was promised.
    """

    target: str
    run: str
    program: str
    budget: int

    @property
    def name(self) -> str:
        """As it stands in the report."""
        return f"{self.run.replace(',stage=', '/stage')}/{self.program}"


def cases() -> Iterator[CompileCase]:
    """Return all cases: all programs on four chips and on more and fewer A100, inference on a GPU of 24 GiB."""
    for target in TARGETS.values():
        for run in RUNS[:1] if target.name in SCALING_TARGETS else RUNS:
            for program in PROGRAMS[1:] if target.name == "gpu24" else PROGRAMS:
                yield CompileCase(
                    target.name, run, program, BUDGET_OVERRIDES.get((target.name, run, program), target.memory)
                )
