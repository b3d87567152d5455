"""What each way of training is worth on held-out videos of the shapes world: `make bench-shapes`.

    videos, tables and features      once
    base                             the model before any training
    each row of `rows.ROWS`          trained with each seed, in a process of its own on one core; then scored

Every result is a file of its own under `--out`; a second call goes on where the first was stopped. Prints means over
the seeds, with their standard errors. A rehearsal is in a folder of its own, OUT/rehearsal.
"""

import argparse
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from benchmarks.shapes.prepare_world import REHEARSAL_SIZES, prepare_world
from benchmarks.shapes.rows import ROWS, Row, result_path
from benchmarks.shapes.table import format_tables
from calce_jax.errors import UserError
from data.shapes.bench.write import SIZES


def main() -> int:
    """Run what is missing and print the tables; return the number of jobs that failed."""
    parser = argparse.ArgumentParser(description="Train and score the rows of the benchmark in the shapes world.")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is written")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of each row")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="rows that run at the same time")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="names, separated by commas")
    parser.add_argument("--rehearse", action="store_true", help="few videos and one epoch, to see that it runs")
    args = parser.parse_args()
    if min(args.seeds, args.jobs) < 1:
        parser.error("--seeds and --jobs must be 1 or more")
    rows = _select_rows(parser, args.rows)
    if args.rehearse:  # its videos have the names of others, and its results are not those of the benchmark
        args.out /= "rehearsal"
    try:
        prepare_world(args.out, REHEARSAL_SIZES if args.rehearse else SIZES)
    except (OSError, UserError) as error:
        parser.exit(1, f"{error}\n")
    failed = _run_jobs(args, rows)
    print("\n" + format_tables(args.out, rows, args.seeds))
    if failed:
        print(f"failed: {', '.join(failed)}; see the .log files in {args.out}", file=sys.stderr)
    return len(failed)


def _select_rows(parser: argparse.ArgumentParser, names: str) -> list[Row]:
    """Return the rows of these names and those that they start from, in the order of `ROWS`."""
    by_name = {row.name: row for row in ROWS}
    wanted = set(names.split(","))
    if unknown := wanted - set(by_name):
        parser.error(f"--rows: there is no {', '.join(sorted(unknown))}; the rows are {', '.join(by_name)}")
    for row in reversed(ROWS):  # each is after the row it starts from
        if row.name in wanted:
            wanted.add(row.start)
    return [row for row in ROWS if row.name in wanted]


def _run_jobs(args: argparse.Namespace, rows: list[Row]) -> list[str]:
    """Run every row that has no result, each after the row it starts from, and return the jobs that failed."""
    # A core each: two processes of one thread do more in the same time than one process of two threads.
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") and shutil.which("taskset") else []
    free_places = list(range(args.jobs))

    def run(job: str, before: Future[bool] | None) -> bool:
        path = result_path(args.out, job)
        if path.is_file():
            return True
        if before is not None and not before.result():
            return False
        place = free_places.pop()
        pin = ["taskset", "-c", str(cores[place % len(cores)])] if cores else []
        command = [sys.executable, "-m", "benchmarks.shapes.run_row", f"--out={args.out}", f"--job={job}"]
        path.parent.mkdir(exist_ok=True)
        try:
            with open(path.with_suffix(".log"), "w", encoding="utf-8") as log:
                done = subprocess.run(
                    [*pin, *command, *(["--rehearse"] if args.rehearse else [])], stdout=log, stderr=log, check=False
                )
        finally:
            free_places.append(place)
        print(f"{job}: {'failed' if done.returncode else 'done'}", flush=True)
        return not done.returncode

    futures: dict[str, Future[bool]] = {}
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            futures["base"] = pool.submit(run, "base", None)
            for row in rows:
                for seed in range(args.seeds):
                    before = futures[f"{row.start}:{seed}"] if row.start else None
                    futures[f"{row.name}:{seed}"] = pool.submit(run, f"{row.name}:{seed}", before)
            return [job for job, future in futures.items() if not future.result()]
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


if __name__ == "__main__":
    sys.exit(main())
