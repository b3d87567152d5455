"""Compile the full-size programs for TPUs and GPUs that are not here: `python -m benchmarks.aot --out=runs/aot.json`.

    python -m benchmarks.aot --target=a100x1 --target=a100x16 --target=a100x256    # how memory changes with the number of chips
    python -m benchmarks.aot --target=v5e-2x2 --run=qvhighlights,stage=1 --program=train_step

Says of each how much of a chip's memory it takes, and leaves with 1 if one does not compile or exceeds its budget.
"""

import dataclasses
import json
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from threading import Lock

from absl import app, flags

from benchmarks.aot.budgets import GROWN, RUNS, Case, cases
from benchmarks.aot.measure import Row
from benchmarks.aot.programs import PROGRAMS
from benchmarks.aot.run import compile_cases
from benchmarks.aot.targets import TARGETS
from calce_jax.presets.runs import get_preset
from calce_jax.storage.atomic_files import write_output

OUT = flags.DEFINE_string("out", "runs/aot.json", "the report")
TARGET = flags.DEFINE_multi_enum(
    "target", [name for name in TARGETS if name not in GROWN], list(TARGETS), "only these; may be repeated"
)
RUN = flags.DEFINE_multi_enum("run", list(RUNS), list(RUNS), "only these; may be repeated")
PROGRAM = flags.DEFINE_multi_enum("program", list(PROGRAMS), list(PROGRAMS), "only these; may be repeated")
JOBS = flags.DEFINE_integer("jobs", 2, "targets that are compiled for at a time", lower_bound=1)
TIMEOUT = flags.DEFINE_float("timeout", 600, "seconds that one program may take", lower_bound=1)


def main(argv: list[str]) -> None:
    """Compile target by target; print rows as they come, and write down all there are."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}")
    wanted: dict[str, list[Case]] = defaultdict(list)
    for case in cases():
        if case.target in TARGET.value and case.run in RUN.value and case.program in PROGRAM.value:
            wanted[case.target].append(case)
    timeout: float = TIMEOUT.value

    rows: list[Row] = []
    writing = Lock()

    def compile_for_target(asked: list[Case]) -> None:
        for row in compile_cases(asked, get_preset, timeout):
            with writing:
                print(row.line(), flush=True)
                rows.append(row)
                rows.sort(key=lambda row: list(TARGETS).index(row.target))
                write_output(str(OUT.value), json.dumps([dataclasses.asdict(row) for row in rows], indent=1) + "\n")

    with ThreadPoolExecutor(JOBS.value) as pool:
        # Those with the most programs first, so that none of these is left alone at the end.
        list(pool.map(compile_for_target, sorted(wanted.values(), key=len, reverse=True)))
    bad = sum(not row.ok for row in rows)
    print(f"{len(rows)} programs, {bad} failed or over budget; wrote {OUT.value}")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    app.run(main)
