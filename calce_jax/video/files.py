"""File suffixes of videos."""

import os
from pathlib import Path

# `find_video` tries them in this order.
VIDEO_SUFFIXES = (
    ".mp4",
    ".mkv",
    ".webm",
    ".avi",
    ".mov",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".ts",
    ".mts",
    ".m2ts",
    ".vob",
    ".3gp",
    ".flv",
    ".wmv",
    ".ogv",
)


def is_video_name(path: Path) -> bool:
    """Return whether a path ends in one of `VIDEO_SUFFIXES`, in any case."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_video(folder: Path, stem: str) -> Path | None:
    """Return the file of a folder named `stem` plus one of `VIDEO_SUFFIXES`, in any case, or None."""
    for suffix in VIDEO_SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            if _is_file(path := folder / f"{stem}{spelling}"):
                return path
    try:
        paths = [folder / name for name in os.listdir(folder) if name.startswith(f"{stem}.")]
    except OSError:
        return None
    candidates = [path for path in paths if path.stem == stem and is_video_name(path)]
    files = sorted(filter(_is_file, candidates), key=lambda path: VIDEO_SUFFIXES.index(path.suffix.lower()))
    return files[0] if files else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
