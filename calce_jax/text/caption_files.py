"""Which .srt file belongs to a video: `film.srt`, in any case, or one with a language, `film.en.srt`."""

import os
import re
from pathlib import Path

SRT_SUFFIX = ".srt"
# A code, with a region or a script, or the name of a language; then what the captions are.
_LANGUAGE = re.compile(
    r"\.([a-z]{2,3}(?:[-_][a-z0-9]{2,8})*|[a-z]{4,12})(?:\.(?:sdh|cc|hi|forced|default|auto|orig))?\.srt", re.IGNORECASE
)


def find_captions(folder: str | Path, stem: str) -> Path | None:
    """Return the .srt file of a video in a folder: `<stem>.srt`, or else the only one with a language; None if none."""
    for suffix in (SRT_SUFFIX, SRT_SUFFIX.upper()):
        if (path := Path(folder) / f"{stem}{suffix}") and _is_file(path):
            return path
    plain, by_language = _list_captions(folder, stem)
    if plain is None and len(by_language) == 1:
        return next(iter(by_language.values()))
    return plain


def caption_languages(folder: str | Path, stem: str) -> dict[str, Path]:
    """Return the .srt files of a video that have a language in their name, by that language, in order."""
    return _list_captions(folder, stem)[1]


def _list_captions(folder: str | Path, stem: str) -> tuple[Path | None, dict[str, Path]]:
    plain, by_language = None, {}
    try:
        # Names alone: paths of a folder of ten thousand, for each of its videos, would take minutes.
        names = sorted(name for name in os.listdir(folder) if name.startswith(f"{stem}."))
    except OSError:
        return None, {}
    for name in names:
        path, ending = Path(folder) / name, name[len(stem) :]
        if ending.lower() == SRT_SUFFIX and _is_file(path):
            plain = path
        elif (match := _LANGUAGE.fullmatch(ending)) and _is_file(path):
            by_language.setdefault(match[1], path)
    return plain, by_language


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
