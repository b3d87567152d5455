"""The whole program at full size on a CPU: `python -m benchmarks.full_size --videos A.mp4 B.mp4 --tokenizers=DIR`.

From 4.04 billion random weights in the published layouts: converts them in and out, compares every part with
`transformers` and `peft` in float32 and bfloat16, and runs the commands of both stages on two videos.
Takes hours of two cores (docs/full_size.md), 24 GB of memory and 60 GB of disk. A run that was stopped goes on with
the step it was in; a folder of a run with other options is refused. The table of all steps is printed at the end, and
written to OUT/results.md; the exit status is 1 if a check failed. `--size=tiny` or `small` rehearses all of it.
"""

import argparse
import importlib
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.full_size import commands
from benchmarks.full_size.commands import Command
from benchmarks.full_size.steps import (
    StepResult,
    count_compile_time,
    read_result,
    report_checks,
    result_path,
    run_process,
)
from benchmarks.full_size.table import result_table
from benchmarks.full_size.workspace import Workspace, check_inputs, claim_folder
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.locks import FileLock

DTYPES = ("float32", "bfloat16")
PARTS = ("vision", "gradients", "beams")


def main() -> int:
    """Run all steps that have not passed, print the table, and return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.full_size", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    Workspace.add_arguments(parser)
    parser.add_argument("--step", help="run one function of a step in this process; used by the program itself")
    parser.add_argument("--until", help="the last step to run, such as `prepare`; a wrong name lists all")
    args = parser.parse_args()
    workspace = Workspace.of(args)
    if args.step:
        _run_here(workspace, args.step)
        return 0
    # Ends the step that runs, as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        steps = list(_steps(workspace))
        if args.until and args.until not in dict(steps):
            parser.error(f"--until={args.until}: there is no such step; choose of {', '.join(dict(steps))}")
        with FileLock(workspace.root / "lock"):
            check_inputs(workspace)
            claim_folder(workspace)  # last: a folder keeps the options that it was claimed with
            return _run_all(workspace, steps, args.until)
    except UserError as error:
        raise SystemExit(str(error)) from error
    except KeyboardInterrupt:
        print("stopped; the same command goes on with this step", file=sys.stderr)
        return 130


def _run_all(workspace: Workspace, steps: Sequence[tuple[str, list[str]]], until: str | None) -> int:
    results = []
    for name, arguments in steps:
        result = read_result(workspace.root, name)
        if result is None or not result.ok:
            print(f"{name} ...", flush=True)
            _remove_partial(workspace, name)
            result = run_process(workspace.root, name, arguments)
        if name == "compare_base" and result.ok:
            shutil.rmtree(workspace.back, ignore_errors=True)  # 16 GB
        results.append(result)
        print(_line(result), flush=True)
        if result.error or name == until:
            break
    table = result_table(workspace, results)
    write_atomic(workspace.root / "results.md", table)
    print(table)
    return 0 if all(result.ok for result in results) else 1


def _steps(workspace: Workspace) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of every step and the arguments of its Python process."""

    def function(name: str, path: str) -> tuple[str, list[str]]:
        return name, ["-m", "benchmarks.full_size", *workspace.arguments(), f"--step={path}"]

    def command(command: Command) -> tuple[str, list[str]]:
        return command.name, ["-m", "benchmarks.full_size.run_command", *command.arguments]

    yield function("publish", "published:write_published")
    yield function("material", "commands:write_material")
    convert_in, convert_back, calce_in, calce_back = commands.conversions_in(workspace)
    yield command(convert_in)
    yield command(convert_back)
    yield function("compare_base", "round_trip:compare_base")
    yield command(calce_in)
    yield command(calce_back)
    yield function("compare_checkpoint", "round_trip:compare_checkpoint")
    yield command(commands.prepare(workspace, merged=False))
    yield command(commands.cache_features(workspace))
    for step in commands.stage(workspace, 1):
        yield command(step)
    for step in commands.merges(workspace):
        yield command(step)
    yield command(commands.prepare(workspace, merged=True))
    for step in [*commands.stage(workspace, 2), *commands.results(workspace)]:
        yield command(step)
    for dtype in DTYPES:
        for part in PARTS:
            for side in ("ours", "theirs"):
                yield function(f"{side}_{part}_{dtype}", f"{side}:compute_{part}:{dtype}")
    yield function("agreement", "agreement:compare_sides")


def _run_here(workspace: Workspace, path: str) -> None:
    module, function, *arguments = path.split(":")
    if module != "theirs":
        count_compile_time()
    checks = getattr(importlib.import_module(f"benchmarks.full_size.{module}"), function)(workspace, *arguments)
    report_checks(checks or [])


def _remove_partial(workspace: Workspace, name: str) -> None:
    """Remove what a stopped step left, where the step would refuse it."""
    result_path(workspace.root, name).unlink(missing_ok=True)
    leftovers: dict[str, list[Path]] = {
        "publish": [workspace.root / "published"],
        "convert_back": [workspace.back],
        "convert_calce_in": [workspace.original],
        "convert_out_hf": [workspace.root / "out/blip2"],
        "convert_out_peft": [workspace.root / "out/adapter"],
    }
    for folder in leftovers.get(name, []):
        shutil.rmtree(folder, ignore_errors=True)


def _line(result: StepResult) -> str:
    compiled = f", {result.compile_seconds:.0f} s of them compiling" if result.compile_seconds else ""
    lines = [f"{result.name}: {result.seconds:.0f} s{compiled}, {result.peak_gb:.1f} GB"]
    lines += [f"  {'ok' if check.ok else 'NOT OK'}: {check.what}: {check.value:.4g}" for check in result.checks]
    return "\n".join([*lines, *([result.error] if result.error else [])])


if __name__ == "__main__":
    sys.exit(main())
