"""Which files are videos, by their names."""

from pathlib import Path

# In the order in which `find_video` prefers them.
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
    """Return whether a file has the suffix of a video, in upper or lower case."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def find_video(folder: Path, stem: str) -> Path | None:
    """Return the file `<stem><suffix of a video>` of a folder, the suffix in any case; None where there is none."""
    for suffix in VIDEO_SUFFIXES:
        for spelling in (suffix, suffix.upper(), suffix.capitalize()):
            if (path := folder / f"{stem}{spelling}").is_file():
                return path
    return None
