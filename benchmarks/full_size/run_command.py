"""Run a `calce` command in this process, and report its compile time."""

import atexit
import sys

from benchmarks.full_size.steps import count_compile_time, report_checks
from calce_jax.commands.cli import main

if __name__ == "__main__":
    count_compile_time()
    atexit.register(report_checks)
    sys.exit(main())
