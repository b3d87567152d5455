"""Launch scripts inside the tests' process. Two may define flags of one name, so each is there for one test alone."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from unittest.mock import patch

from absl import flags


def compiling_quickly(devices: int) -> str:
    """Return XLA's flags for a process of its own: those of the tests (conftest.py), with so many devices."""
    return os.environ["XLA_FLAGS"].replace("device_count=4", f"device_count={devices}")


@contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """Import `launch/<name>.py` anew, and take its flags away afterwards."""
    _forget()
    try:
        yield importlib.import_module(f"launch.{name}")
    finally:
        _forget()


def call(name: str, *arguments: object) -> None:
    """Do what the command line `launch/<name>.py ARGUMENTS` does."""
    argv = [name, *map(str, arguments)]
    # ml_collections looks for fields of the config there, too.
    with script(name) as module, patch.object(sys, "argv", argv):
        module.main(getattr(module, "parse", flags.FLAGS)(argv))


def _forget() -> None:
    flags.FLAGS.unparse_flags()
    modules = [name for name in sys.modules if name.startswith("launch.")]
    for module in modules:
        for flag in flags.FLAGS.get_flags_for_module(module):
            delattr(flags.FLAGS, flag.name)
        del sys.modules[module]
    # Fields of a config become flags where one is read.
    for name in [name for name in flags.FLAGS if name.startswith("config.")]:
        delattr(flags.FLAGS, name)
