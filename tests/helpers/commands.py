"""Run commands inside the process of the tests."""

import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import click
import jax
from absl import logging

from calce_jax.commands import cli
from calce_jax.commands.cli import invoke
from calce_jax.storage.verification import set_verification, verification_enabled


def xla_test_flags(devices: int) -> str:
    """Return the XLA flags of the tests (conftest.py) for a subprocess with so many simulated devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices}")


def run_script(name: str, *arguments: object) -> None:
    """Run the command line `calce NAME ARGUMENTS`.

    Raises:
      SystemExit: with the exit code; with the message in place of exit code 1.
    """
    argv = [f"calce {name}", *map(str, arguments)]
    with unchanged_process(), patch.object(sys, "argv", argv):
        invoke(load_command(name), argv[1:], argv[0])


def load_command(name: str) -> click.Command:
    """Return a command, with flags of absl as if none had been parsed."""
    module = importlib.import_module(f"calce_jax.commands.{name}")
    if hasattr(module, "FLAGS"):
        module.FLAGS.unparse_flags()
        # A config that is parsed defines a flag for each of its fields.
        for field in [flag for flag in module.FLAGS if flag.startswith("config.")]:
            delattr(module.FLAGS, field)
    return cli.load_command(name)


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
