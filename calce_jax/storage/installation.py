"""What compiled programs depend on beside their text: this package's code, the versions of libraries, flags of XLA."""

import hashlib
import os
import platform
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
LIBRARIES = ("jax", "jaxlib", "flax", "numpy")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_PLATFORMS")


def installation() -> list[Any]:
    """Return code, versions and flags, without importing libraries that were installed by a package manager."""
    return [
        code_hash(),
        [library_version(name) for name in LIBRARIES],
        platform.python_version(),
        [os.environ.get(name, "") for name in FLAGS],
    ]


def library_version(name: str) -> str:
    """Return the version of a library, also of one that lies in a folder of the path without metadata."""
    try:
        return version(name)
    except PackageNotFoundError:
        return str(import_module(name).__version__)


@cache
def code_hash() -> str:
    """Return a hash of the source files of this package; takes 10 ms."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("[!.]*.py")):  # an editor's lock, ".#name.py", is a link to nothing
        content = path.read_bytes()
        digest.update(f"{path.relative_to(PACKAGE)} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()
