"""Which file of captions belongs to a video: `film.srt`, `film.vtt`, in any case, or with a language: `film.en.srt`."""

import os
import re
from pathlib import Path

from calce_jax.config import Behaviour
from calce_jax.text.caption import Caption
from calce_jax.text.captions import read_srt
from calce_jax.text.languages import is_language, language_code
from calce_jax.text.webvtt import VTT_SUFFIX, read_vtt

SRT_SUFFIX = ".srt"
CAPTION_SUFFIXES = (SRT_SUFFIX, VTT_SUFFIX)  # in the order in which they are taken
# A code, with a region or a script, or the name of a language; then what the captions are.
_LANGUAGE = re.compile(
    r"\.([a-z]{2,3}(?:[-_][a-z0-9]{2,8})*|[a-z]{4,12})(\.(?:sdh|cc|hi|forced|default|auto|orig))?(\.(?:srt|vtt))",
    re.IGNORECASE,
)


def read_captions(path: str | Path, behaviour: Behaviour = "default") -> list[Caption]:
    """Read a file of captions, WebVTT if its name ends in .vtt, else .srt; see `read_srt` and `read_vtt`.

    Args:
      path: the file.
      behaviour: of `read_srt`; the original reads no .vtt, so they are the same under both.

    Raises:
      UserFileNotFoundError: there is no such file.
      CaptionError: it is too large, not UTF-8, or malformed.
    """
    return read_vtt(path) if Path(path).suffix.lower() == VTT_SUFFIX else read_srt(path, behaviour)


def find_captions(folder: str | Path, stem: str, language: str | None = None) -> Path | None:
    """Return the captions of a video in a folder, or None.

    Args:
      folder: where to look.
      stem: of the video's file name.
      language: a code or an English name, such as "de", "pt-BR" or "German": the file that has it in its name. By
        default `<stem>.srt`, or else `<stem>.vtt`, or else the only language that is there. `.srt` goes before `.vtt`.
    """
    if language is not None:
        by_language = caption_languages(folder, stem)
        codes = [code for code in by_language if is_language(code, language)]
        return by_language[min(codes, key=len)] if codes else None  # "de" before "de-at"
    for suffix in CAPTION_SUFFIXES:
        for spelling in (suffix, suffix.upper()):
            if _is_file(path := Path(folder) / f"{stem}{spelling}"):
                return path
    plain, by_language = _list_captions(folder, stem)
    if plain is None and len(by_language) == 1:
        return next(iter(by_language.values()))
    return plain


def caption_languages(folder: str | Path, stem: str) -> dict[str, Path]:
    """Return the captions of a video that have a language in their name, by its code, in order of file names.

    Of several in one language, one without "sdh", "forced" or the like is taken, then .srt before .vtt.
    """
    return _list_captions(folder, stem)[1]


def _list_captions(folder: str | Path, stem: str) -> tuple[Path | None, dict[str, Path]]:
    plain: dict[str, Path] = {}
    ranked: dict[str, tuple[tuple[bool, bool], Path]] = {}
    try:
        # Names alone: paths of a folder of ten thousand, for each of its videos, would take minutes.
        names = sorted(name for name in os.listdir(folder) if name.startswith(f"{stem}."))
    except OSError:
        return None, {}
    for name in names:
        path, ending = Path(folder) / name, name[len(stem) :]
        if ending.lower() in CAPTION_SUFFIXES and _is_file(path):
            plain[ending.lower()] = path
        elif (match := _LANGUAGE.fullmatch(ending)) and _is_file(path):
            code, rank = language_code(match[1]), (match[2] is not None, match[3].lower() != SRT_SUFFIX)
            if code not in ranked or rank < ranked[code][0]:
                ranked[code] = rank, path
    first = next((plain[suffix] for suffix in CAPTION_SUFFIXES if suffix in plain), None)
    return first, {code: path for code, (_, path) in ranked.items()}


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that is too long
        return False
