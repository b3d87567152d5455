"""What results are recorded with: hashes of files, the version of the package, the revision of the code."""

import hashlib
import os
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def file_hash(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def installed_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("calce_jax")
    except PackageNotFoundError:
        return "(not installed)"


def git_revision() -> str:
    """Return the git commit of this code, with "+" if tracked files have changed; "unknown" outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return revision + ("+" if changed.stdout.strip() else "")
