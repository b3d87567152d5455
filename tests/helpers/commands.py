"""Commands inside the tests' process."""

import importlib
import os
import sys
from unittest.mock import patch

from absl import logging

from calce_jax.commands.runner import run_main


def xla_test_flags(devices: int) -> str:
    """Return XLA's flags for a process of its own: those of the tests (conftest.py), with so many devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices}")


def run_script(name: str, *arguments: object) -> None:
    """Do what the command line `calce NAME ARGUMENTS` does.

    Raises:
      SystemExit: as that; with its message where the exit code is 1.
    """
    module = importlib.import_module(f"calce_jax.commands.{name}")
    argv, verbosity = [f"calce {name}", *map(str, arguments)], logging.get_verbosity()
    module.FLAGS.unparse_flags()
    # Fields of a config become flags where one is read.
    for field in [flag for flag in module.FLAGS if flag.startswith("config.")]:
        delattr(module.FLAGS, field)
    try:
        with patch.object(sys, "argv", argv):
            run_main(module.main, argv, module.FLAGS, getattr(module, "parse", None))
    finally:
        logging.set_verbosity(verbosity)
