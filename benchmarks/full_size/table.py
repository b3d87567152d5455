"""The results of a run as two tables in Markdown."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.full_size.steps import StepResult
from benchmarks.full_size.workspace import Workspace
from benchmarks.paired import processor_name


def result_table(workspace: Workspace, results: Sequence[StepResult]) -> str:
    """Return the machine, the checks and the steps."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "torch", "transformers", "peft"))
    machine = f"{processor_name()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    lines = [
        f"Size {workspace.size}; {machine}, {packages}.",
        "",
        "| check | found | at most | |",
        "|---|---|---|---|",
    ]
    for check in (check for result in results for check in result.checks):
        limit = "" if check.limit is None else f"{check.limit:.4g}"
        lines.append(
            f"| {check.what} | {check.value:.4g} | {limit} | {'' if not limit else 'ok' if check.ok else 'NOT OK'} |"
        )
    lines += ["", "| step | wall time, s | of it compiling, s | peak memory, GB | |", "|---|---|---|---|---|"]
    for result in results:
        compiled = f"{result.compile_seconds:.0f}" if result.compile_seconds else ""
        state = "failed" if result.error else "ok" if result.ok else "NOT OK"
        lines.append(f"| {result.name} | {result.seconds:.0f} | {compiled} | {result.peak_gb:.1f} | {state} |")
    return "\n".join(lines) + "\n"
