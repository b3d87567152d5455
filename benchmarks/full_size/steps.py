"""Steps of a run: each in a process of its own, with its time, peak memory and checks in a JSON file.

A step whose file says that it passed is not run again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from calce_jax.storage.atomic_files import write_atomic


@dataclass(frozen=True)
class Check:
    """A number that a step found, and the most that it may be (None: it is only reported)."""

    what: str
    value: float
    limit: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the number is within its limit."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Attributes:
      name: of the step.
      seconds: wall time.
      peak_gb: of the resident memory of its process, or of the largest of its child processes.
      compile_seconds: of jax's compiler, within `seconds`.
      checks: what it compared.
      error: the last lines of a step that failed, or "".
    """

    name: str
    seconds: float
    peak_gb: float
    compile_seconds: float = 0.0
    checks: list[Check] = field(default_factory=list)
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the step ran to its end and every check is within its limit."""
        return not self.error and all(check.ok for check in self.checks)


def result_path(folder: Path, name: str) -> Path:
    """Return the file of a step's result."""
    return folder / "results" / f"{name}.json"


def read_result(folder: Path, name: str) -> StepResult | None:
    """Return the result of a step, or None if it has not run."""
    path = result_path(folder, name)
    if not path.is_file():
        return None
    values = json.loads(path.read_text(encoding="utf-8"))
    return StepResult(**values | {"checks": [Check(**check) for check in values["checks"]]})


def run_process(folder: Path, name: str, arguments: Sequence[str]) -> StepResult:
    """Run a step in another process, write its result, and return it.

    The process may leave `{"compile_seconds": ..., "checks": [...]}` in the file that the environment variable
    FULL_SIZE_REPORT names. Its output goes to `logs/NAME.log`.
    """
    report, log = folder / "results" / f"{name}.report.json", folder / "logs" / f"{name}.log"
    for path in (report, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    start = time.perf_counter()
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"FULL_SIZE_REPORT": str(report)},
        )
        try:
            # Not process.wait(): this also gives the peak memory, of this process and of those that it waited for.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # also Ctrl-C and SIGTERM: the step would go on, with up to 20 GB
            process.kill()
            process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    found = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    report.unlink(missing_ok=True)
    result = StepResult(
        name,
        round(time.perf_counter() - start, 1),
        round(usage.ru_maxrss * 1024 / 1e9, 2),
        round(found.get("compile_seconds", 0.0), 1),
        [Check(**check) for check in found.get("checks", [])],
        _last_lines(log, process.returncode) if process.returncode else "",
    )
    write_atomic(result_path(folder, name), json.dumps(asdict(result), indent=1) + "\n")
    return result


def report_checks(checks: Sequence[Check] = ()) -> None:
    """Leave what this process found to the one that started it."""
    if path := os.environ.get("FULL_SIZE_REPORT"):
        content = {"compile_seconds": compile_seconds(), "checks": [asdict(check) for check in checks]}
        write_atomic(Path(path), json.dumps(content))


_compile_seconds: list[float] = []


def count_compile_time() -> None:
    """Count the seconds of jax's compiler in this process from now on."""
    import jax  # noqa: PLC0415  (a process that only starts others does without)

    def listen(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            _compile_seconds.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)


def compile_seconds() -> float:
    """Return the seconds counted so far."""
    return sum(_compile_seconds)


def _last_lines(log: Path, status: int) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-6:]
    return "\n".join([f"exit status {status}", *lines])
