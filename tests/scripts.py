"""Launch scripts inside the tests' process. Two of them define flags of one name, so each is there for one test alone."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from absl import flags


@contextmanager
def script(name: str) -> Iterator[ModuleType]:
    """Import `launch/<name>.py` anew, and take its flags away afterwards."""
    path = f"launch.{name}"
    module = importlib.import_module(path)
    try:
        yield module
    finally:
        flags.FLAGS.unparse_flags()
        for flag in flags.FLAGS.get_flags_for_module(path):
            delattr(flags.FLAGS, flag.name)
        del sys.modules[path]
