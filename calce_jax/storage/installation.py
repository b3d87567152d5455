"""What compiled programs depend on beside their text: this package's code, the versions of libraries, flags of XLA."""

import hashlib
import os
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("jax", "jaxlib", "flax", "numpy")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS")


def installation() -> list[Any]:
    """Return code, versions and flags, without importing the libraries."""
    versions = [version(library) for library in LIBRARIES]
    return [code_hash(), versions, platform.python_version(), [os.environ.get(name, "") for name in FLAGS]]


@cache
def code_hash() -> str:
    """Return a hash of the source files of this package; takes 10 ms."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
