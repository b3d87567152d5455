"""Free space of a disk."""

import shutil
from pathlib import Path


def free_bytes(path: str | Path) -> int:
    """Return the free bytes of the disk of a file or folder, which need not exist yet."""
    absolute = Path(path).absolute()
    return shutil.disk_usage(next(folder for folder in (absolute, *absolute.parents) if folder.exists())).free
