"""All cases compiled, each target's in a process of its own: a compiler that crashes or hangs fails one row."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection

import jax

from benchmarks.aot.budgets import CompileCase
from benchmarks.aot.measure import ReportRow, failed_row, measure
from calce_jax.config import RunConfig

ConfigFn = Callable[[str], RunConfig]
# The compilers' own log, most of which says that there is no such device here.
_QUIET_ENV = {"TF_CPP_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
# How hard compilers try to make programs fast. What these hold hardly depends on it (docs/scaling.md), and the compiler
# for TPUs, left to itself, takes four times as long.
OPTIMIZATION_LEVEL = "O0"


def compile_cases(cases: Sequence[CompileCase], configs: ConfigFn, timeout: float) -> Iterator[ReportRow]:
    """Compile cases one after the other, in another process.

    Args:
      cases: what to compile.
      configs: returns the config of a case's run; it travels to the process.
      timeout: seconds that one case may take; a new process then goes on with the next.

    Returns:
      A row for each case, in order, as they are ready.
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
