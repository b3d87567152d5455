"""Compile the full-size programs for TPUs and GPUs of other machines: `python -m benchmarks.aot --out=runs/aot.json`.

    python -m benchmarks.aot --target=a100x1 --target=a100x16 --target=a100x256    # memory by number of chips
    python -m benchmarks.aot --target=v5e-2x2 --run=qvhighlights,stage=1 --program=train_step

Prints the memory of a chip that each program takes; the exit code is 1 if one does not compile or exceeds its budget.
"""

import dataclasses
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from absl import app, flags

from benchmarks.aot.budgets import RUNS, SCALING_TARGETS, CompileCase, cases
from benchmarks.aot.measure import ReportRow
from benchmarks.aot.programs import PROGRAMS
from benchmarks.aot.run import compile_cases
from benchmarks.aot.targets import TARGETS
from calce_jax.presets.runs import get_preset
from calce_jax.storage.atomic_files import write_atomic

OUT = flags.DEFINE_string("out", "runs/aot.json", "output file of the report")
TARGET = flags.DEFINE_multi_enum(
    "target", [name for name in TARGETS if name not in SCALING_TARGETS], list(TARGETS), "only these; may be repeated"
)
RUN = flags.DEFINE_multi_enum("run", list(RUNS), list(RUNS), "only these; may be repeated")
PROGRAM = flags.DEFINE_multi_enum("program", list(PROGRAMS), list(PROGRAMS), "only these; may be repeated")
JOBS = flags.DEFINE_integer("jobs", 2, "number of targets compiled for at the same time", lower_bound=1)
TIMEOUT = flags.DEFINE_float("timeout", 600, "timeout of one program, seconds", lower_bound=1)


def main(argv: list[str]) -> None:
    """Compile all selected programs; print and write each row when it is ready."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    cases_by_target: dict[str, list[CompileCase]] = defaultdict(list)
    for case in cases():
        if case.target in TARGET.value and case.run in RUN.value and case.program in PROGRAM.value:
            cases_by_target[case.target].append(case)
    timeout: float = TIMEOUT.value

    rows: list[ReportRow] = []
    lock = Lock()

    def compile_for_target(target_cases: list[CompileCase]) -> None:
        for row in compile_cases(target_cases, get_preset, timeout):
            with lock:
                print(row.line(), flush=True)
                rows.append(row)
                rows.sort(key=lambda row: list(TARGETS).index(row.target))
                write_atomic(str(OUT.value), json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")

    with ThreadPoolExecutor(JOBS.value) as pool:
        # Targets with most programs first, which balances the jobs.
        list(pool.map(compile_for_target, sorted(cases_by_target.values(), key=len, reverse=True)))
    num_failed = sum(not row.ok for row in rows)
    print(f"{len(rows)} programs, {num_failed} failed or over budget; wrote {OUT.value}")
    raise SystemExit(1 if num_failed else 0)


if __name__ == "__main__":
    app.run(main)
