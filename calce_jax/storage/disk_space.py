"""How much room a disk has."""

import shutil
from pathlib import Path


def free_bytes(place: str | Path) -> int:
    """Return the bytes that are free on the disk of a file or folder, which need not exist yet."""
    path = Path(place).absolute()
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
