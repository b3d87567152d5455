"""Compile cases in another process: a compiler that crashes or hangs fails a single row."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import jax

from benchmarks.aot.budgets import CompileCase
from benchmarks.aot.measure import ReportRow, failed_row, measure
from calce_jax.config import RunConfig

ConfigFn = Callable[[str], RunConfig]
# Hides the compilers' log, which reports mostly that there is no such device.
_QUIET_ENV = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
# Memory hardly depends on the optimization level (docs/scaling.md), and at its default the compiler for TPUs takes four
# times as long.
OPTIMIZATION_LEVEL = "O0"


def compile_cases(cases: Sequence[CompileCase], configs: ConfigFn, timeout: float) -> Iterator[ReportRow]:
    """Compile cases sequentially in another process; yield a row for each, in order.

    Args:
      cases: programs and targets.
      configs: returns the config of a run by name; it is pickled.
      timeout: of one case, seconds; a new process then continues with the next.
    """
    pending = list(cases)
    context = multiprocessing.get_context("spawn")
    for name, value in {"JAX_PLATFORMS": "cpu", **_QUIET_ENV}.items():
        os.environ.setdefault(name, value)
    while pending:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_serve, args=(sender, pending, configs), daemon=True)
        process.start()
        sender.close()
        reason = ""
        while pending and not reason:
            if not receiver.poll(timeout):
                reason = f"not compiled within {timeout:g} s"
                continue
            try:
                row: ReportRow = receiver.recv()
            except EOFError:
                process.join()
                reason = f"the compiler's process ended with code {process.exitcode}"
                continue
            yield row
            pending.pop(0)
        process.kill()
        process.join()
        if reason:
            yield failed_row(pending.pop(0), reason)


def _serve(pipe: Connection, cases: Sequence[CompileCase], configs: ConfigFn) -> None:
    jax.config.update("jax_optimization_level", OPTIMIZATION_LEVEL)
    for case in cases:
        try:
            row = measure(case, configs(case.run))
        except Exception as error:
            row = failed_row(case, f"{type(error).__name__}: {error}".splitlines()[0])
        pipe.send(row)
