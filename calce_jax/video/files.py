"""File suffixes of videos."""

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
        for spelling in (suffix, suffix.upper(), suffix.capitalize()):
            if (path := folder / f"{stem}{spelling}").is_file():
                return path
    return None
