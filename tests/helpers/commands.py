"""Run commands inside the process of the tests."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

import jax
from absl import logging

from calce_jax.commands.runner import run_main
from calce_jax.storage.verification import set_verification, verification_enabled


def xla_test_flags(devices: int) -> str:
    """Return the XLA flags of the tests (conftest.py) for a subprocess with so many simulated devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices}")


def run_script(name: str, *arguments: object) -> None:
    """Run the command line `calce NAME ARGUMENTS`.

    Raises:
      SystemExit: with the exit code; with the message in place of exit code 1.
    """
    module = load_command(name)
    argv = [f"calce {name}", *map(str, arguments)]
    with unchanged_process(), patch.object(sys, "argv", argv):
        run_main(module.main, argv, module.FLAGS, getattr(module, "parse", None))


def load_command(name: str) -> ModuleType:
    """Return the module of a command, with flags as if none had been parsed."""
    module = importlib.import_module(f"calce_jax.commands.{name}")
    module.FLAGS.unparse_flags()
    # A config that is parsed defines a flag for each of its fields.
    for field in [flag for flag in module.FLAGS if flag.startswith("config.")]:
        delattr(module.FLAGS, field)
    return module


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Restore what a command sets for its process: verbosity, --verify, environment and JAX's compilation cache."""
    verbosity, verified = logging.get_verbosity(), verification_enabled()
    options = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")
    settings = {name: getattr(jax.config, name) for name in options}
    try:
        with patch.dict(os.environ), warnings.catch_warnings():
            # ml_collections loads the file of a config with an API that Python 3.11 deprecates.
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        set_verification(verified)
        for name, value in settings.items():
            jax.config.update(name, value)
