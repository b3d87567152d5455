"""Free space of a disk."""

import shutil
from pathlib import Path


def free_bytes(path: str | Path) -> int:
    """Return the free bytes of the disk of a file or folder, which need not exist yet."""
    absolute = Path(path).absolute()
    return shutil.disk_usage(next(folder for folder in (absolute, *absolute.parents) if folder.exists())).free


def format_bytes(count: int) -> str:
    """Return a number of bytes for a message, such as "4 kB", "0.3 MB" or "12.5 GB"."""
    if count >= 1e9:
        return f"{count / 1e9:.1f} GB"
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.0f} kB"
