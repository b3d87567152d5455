"""Captions from WebVTT files (.vtt), of which nothing is kept but times and text.

A cue is a line of times and the text below it, up to an empty line. All that stands elsewhere is skipped: the header,
identifiers of cues, and blocks of NOTE, STYLE and REGION. Source: https://www.w3.org/TR/webvtt1/
"""

import re
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path

from calce_jax.text.caption import Caption
from calce_jax.text.captions import (
    BROKEN_TIMES,
    CaptionError,
    excerpt,
    header_time,
    line_number,
    plain_lines,
    read_caption_text,
    to_captions,
)
from calce_jax.text.rolling_captions import Entry

VTT_SUFFIX = ".vtt"

_SIGNATURE = re.compile(r"WEBVTT(?![^ \t\n])")
# The hours may be missing; "," is no WebVTT, but is written.
_TIME = r"(?:([0-9]++):)?([0-9]++):([0-9]++)(?:[.,]([0-9]*+))?+"
_TIMES = re.compile(rf"^[ \t]*+{_TIME}[ \t]*+-->[ \t]*+{_TIME}(?![^ \t\n])[^\n]*+\n?+", re.MULTILINE)
# <b>, </c.yellow>, <v Roger Bingham>, <00:00:01.000>
_TAG = re.compile(r"</?(?:[A-Za-z][^<>]*|[0-9:.]*)>")


def read_vtt(path: str | Path) -> list[Caption]:
    """Read all cues that have text, in time and memory linear in the size of the file.

    As `calce_jax.text.captions.read_srt` does by default: sorted by start, reversed times swapped, every line of
    rolling captions once.

    Raises:
      UserFileNotFoundError: there is no such file.
      CaptionError: the file is larger than 50 MB, not UTF-8, does not begin with WEBVTT, or has malformed times.
    """
    path = Path(path)
    text = read_caption_text(path)
    if text.strip() and not _SIGNATURE.match(text):
        raise CaptionError(
            f'{path}, line 1: expected "WEBVTT", got {excerpt(text.partition(chr(10))[0])}',
            "write WEBVTT into the first line, or name the file .srt if it is one",
        )
    return to_captions(_parse_cues(text, path))


def _parse_cues(text: str, path: Path) -> Iterator[Entry]:
    position = 0
    for header, following in pairwise(chain(_TIMES.finditer(text), [None])):
        assert header is not None, "None is the last"
        _check_times(text, position, header.start(), path)
        position = header.end()
        limit = following.start() if following else len(text)
        # From the end of the line of times on, which an empty line may follow.
        text_end = text.find("\n\n", position - 1, limit)
        lines = plain_lines(_TAG.sub("", text[position : limit if text_end < 0 else text_end]))
        start, end = sorted((header_time(header, 1, path), header_time(header, 5, path)))
        if lines:
            yield Entry(start, end, lines)
    _check_times(text, position, len(text), path)


def _check_times(text: str, start: int, end: int, path: Path) -> None:
    """Raise if there are malformed times between two positions: they would be skipped, or be read as text."""
    if broken := BROKEN_TIMES.search(text, start, end):
        actual = text[broken.start(1) : broken.start(1) + 60].partition("\n")[0]
        raise CaptionError(
            f'{path}, line {line_number(text, broken.start(1))}: expected "00:01.000 --> 00:02.500", '
            f"got {excerpt(actual)}",
            "fix the file, or leave WEBVTT alone in it if there are no captions",
        )
