"""Captions from .srt files: parsing, cleaning, and intervals of speech; `calce_jax.text.webvtt` parses .vtt files.

`read_srt` returns all entries unchanged. Intervals of speech use all of them, `clean_captions` keeps the English ones.
"""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.storage.text_files import read_text
from calce_jax.text.caption import Caption, Number
from calce_jax.text.rolling_captions import Entry, unroll

FILLER_WORDS = frozenset({"the", "a", "o", "oh", "yeah", "uh", "ah", "yep", "uh-no", "hmm"})
MIN_ENGLISH_FRACTION = 0.8  # of a caption's words must consist of the letters a to z
MAX_PAUSE_SECONDS = 2.5  # the longest gap inside an interval of speech

MISSING_REMEDY = "create it, empty if there is no speech"
MAX_BYTES = 50_000_000  # of a file; a film of two hours has 200 kB
MAX_HOURS = 100_000  # upper bound of times, so that seconds fit into 32 bits

# Users upload captions, so parsing must take time linear in the text. Repeats are possessive (`*+`) where a shorter
# match cannot succeed: backtracking through every length makes an expression quadratic.
_NUMBER = r"-?+[0-9]++\.?+[0-9]*+"
_SEPARATOR = "[,.:\N{FULLWIDTH COMMA}\N{FULLWIDTH FULL STOP}\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH COLON}]"
_TIME = _SEPARATOR.join(["([0-9]++)"] * 3) + f"{_SEPARATOR}?+([0-9]*+)"  # hours, minutes, seconds, their fraction
# The times of an entry are below its number; the number may be missing.
_NUMBER_ABOVE = rf"{_NUMBER}\s*+(?<=\n)"
_HEADER = re.compile(rf"(?:{_NUMBER_ABOVE})?{_TIME} *+-[ -] *+> *+{_TIME}[^\n]*+\n?+")
_START = re.compile(rf"^(?=({_NUMBER_ABOVE})?{_TIME})", re.MULTILINE)
_NUMBER_ALONE = re.compile(rf"{_NUMBER}\s++(?=\S)")
BROKEN_TIMES = re.compile(r"^[^\S\n]*+(-?+\d++:\S*\s*-->)", re.MULTILINE)
_SPACE = re.compile(r"\s*+")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")
# Without the ";" it may be part of a URL ("?a=1&copy=2"); numbers with more digits are no characters.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_PUNCTUATION = re.compile(r"[^\w\s]")


class CaptionError(UserError):
    """Captions that cannot be parsed; the message names file, line and remedy."""


def read_srt(path: str | Path, behaviour: Behaviour = "default") -> list[Caption]:
    """Read all entries that have text, in time and memory linear in the size of the file.

    By default entries are sorted by start, reversed times are swapped, and rolling captions say every line once
    (`calce_jax.text.rolling_captions`). The parser accepts a byte order mark, "." before the milliseconds, ",5" for
    500 ms, lines of digits or "-->" inside a text, character entities ("&amp;") and markup. "reference" parses like the
    original, in the order of the file: after a byte order mark the first entry is lost; a line of digits is always the
    number of an entry and a line with "-->" its times, so both are errors inside a text, as is "." before the
    milliseconds.

    Raises:
      UserFileNotFoundError: there is no such file.
      CaptionError: the file is larger than 50 MB, not UTF-8, or has a malformed entry.
    """
    path = Path(path)
    if behaviour == "reference":
        return list(_parse_lines(read_caption_text(path, keep_byte_order_mark=True), path))
    return to_captions(_parse_entries(read_caption_text(path), path))


def read_caption_text(path: Path, *, keep_byte_order_mark: bool = False) -> str:
    r"""Return the text of a file of captions, with "\n" at the end of every line.

    Raises:
      UserFileNotFoundError: there is no such file.
      CaptionError: the file is larger than 50 MB, or not UTF-8.
    """
    if path.is_file() and (size := path.stat().st_size) > MAX_BYTES:
        raise CaptionError(
            f"{path}: {size:,} bytes, more than the limit of {MAX_BYTES:,}",
            f"give the {path.suffix or '.srt'} file of a video",
        )
    text = read_text(path, "captions", MISSING_REMEDY, CaptionError, keep_byte_order_mark=keep_byte_order_mark)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def to_captions(entries: Iterable[Entry]) -> list[Caption]:
    """Return captions in order of start; rolling ones say every line once (`calce_jax.text.rolling_captions`)."""
    in_order = sorted(entries, key=lambda entry: entry.start)
    return [Caption(entry.start, entry.end, " ".join(entry.lines)) for entry in unroll(in_order)]


def plain_lines(text: str) -> list[str]:
    """Return the lines of the text of an entry that are not empty, without markup; "&amp;" becomes "&"."""
    written = _ENTITY.sub(_character, _MARKUP.sub("", text)).split("\n")
    return [" ".join(words) for words in map(str.split, written) if words]


def check_srt(content: bytes) -> None:
    """Check that `read_srt` can parse the content of an .srt file by default.

    Raises:
      CaptionError: it is malformed.
      UnicodeDecodeError: it is not UTF-8.
    """
    for _ in _parse_entries(content.decode("utf-8-sig"), Path("captions")):
        pass


def clean_captions(captions: Sequence[Caption]) -> list[Caption]:
    """Merge repeated captions, and clean their text by `clean_text`; captions without text are dropped.

    Source: the original's rules.
    """
    cleaned = ((caption, clean_text(caption.text)) for caption in _merge_repeats(captions))
    return [replace(caption, text=text) for caption, text in cleaned if text]


def clean_text(text: str) -> str | None:
    """Return a text in lower case without punctuation and fillers; `None` if nothing is left or it is not English."""
    words = _PUNCTUATION.sub("", text).lower().split()
    english = [word for word in words if word.isascii() and word.isalpha()]
    if len(english) < MIN_ENGLISH_FRACTION * len(words):
        return None
    return " ".join(word for word in words if word not in FILLER_WORDS) or None


def speech_intervals(captions: Sequence[Caption], behaviour: Behaviour = "default") -> list[tuple[Number, Number]]:
    """Return the intervals (start, end) of speech, in seconds: captions with gaps of at most 2.5 s are merged.

    Args:
      captions: as read, not cleaned, in order of time.
      behaviour: by default an interval ends with its latest end; under "reference", as in the original, with the end of
        its last caption, even if an earlier one ends later.
    """
    intervals: list[tuple[Number, Number]] = []
    for caption in captions:
        start, end = intervals[-1] if intervals else (0.0, float("-inf"))
        if caption.start - end <= MAX_PAUSE_SECONDS:
            intervals[-1] = (start, caption.end if behaviour == "reference" else max(end, caption.end))
        else:
            intervals.append((caption.start, caption.end))
    return intervals


def _merge_repeats(captions: Iterable[Caption]) -> list[Caption]:
    """Merge consecutive captions of the same text, of which each starts when the one before ends."""
    merged: list[Caption] = []
    for caption in captions:
        if merged and (merged[-1].end, merged[-1].text) == (caption.start, caption.text):
            merged[-1] = replace(merged[-1], end=caption.end)
        else:
            merged.append(caption)
    return merged


def _parse_entries(text: str, path: Path) -> Iterator[Entry]:
    """Yield entries: a number, which may be missing, a line of times, and text up to the start of the next entry.

    Entries are the same as those of the library srt 3.5.3, whose expression takes minutes for a long line of digits.
    """
    starts = _START.finditer(text)
    position = _end(_SPACE, text, 1 if text.startswith("\ufeff") else 0)  # a second byte order mark
    while position < len(text):
        header = _HEADER.match(text, position)
        if header is None:
            raise _malformed_error(path, text, _end(_NUMBER_ALONE, text, position))
        text_start = header.end()
        position = next((start.start() for start in starts if _ends_text(text, text_start, start)), len(text))
        # An entry with malformed times does not match `_START`, so it would become text of the entry before.
        if broken := BROKEN_TIMES.search(text, text_start, position):
            raise _malformed_error(path, text, broken.start(1))
        lines = plain_lines(text[text_start:position])
        start, end = sorted((header_time(header, 1, path), header_time(header, 5, path)))
        if lines:
            yield Entry(start, end, lines)


def _ends_text(text: str, text_start: int, start: re.Match[str]) -> bool:
    """Whether the text from `text_start` ends at a match of `_START`: at a number, or below a blank line.

    Digits right below the times are text, as in "42"; so are times without a number in the middle of a text.
    """
    position = start.start()
    return position > text_start and (
        start[1] is not None or (position > text_start + 1 and text.startswith("\n\n", position - 2))
    )


def header_time(header: re.Match[str], group: int, path: Path) -> float:
    """Return the seconds of four groups of a header, from `group` on: hours, minutes, seconds, fraction.

    Raises:
      CaptionError: the time is 100,000 hours or more.
    """
    hours, minutes, seconds, fraction = (written or "0" for written in header.group(*range(group, group + 4)))
    # Through float, because int() refuses text of more than 4300 digits.
    whole_seconds = (float(hours) * 60 + float(minutes)) * 60 + float(seconds)
    if whole_seconds >= MAX_HOURS * 3600:
        # Hours and the fraction are not always written.
        start = header.start(group if header[group] else group + 1)
        time = excerpt(header.string[start : max(header.end(group + 2), header.end(group + 3))])
        line = line_number(header.string, start)
        raise CaptionError(f"{path}, line {line}: {time} is {MAX_HOURS} hours or more", "write times as 00:00:01,000")
    # One division of integer microseconds: a sum of rounded parts may not be the float nearest to the written time.
    return (int(whole_seconds) * 1_000_000 + int(fraction[:6].ljust(6, "0"))) / 1_000_000


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    """Return the end of a match of `pattern` at `position`; `position` if it does not match."""
    match = pattern.match(text, position)
    return match.end() if match else position


def line_number(text: str, position: int) -> int:
    """Return the number of the line of a position in a text, from 1."""
    return text.count("\n", 0, position) + 1


def _malformed_error(path: Path, text: str, position: int) -> CaptionError:
    actual = text[position : position + 60].partition("\n")[0]
    return CaptionError(
        f"{path}, line {line_number(text, position)}: expected a number, "
        f'then "00:00:01,000 --> 00:00:02,500", then text, got {excerpt(actual)}',
        "fix the file, or empty it if there are no captions",
    )


def excerpt(text: str) -> str:
    """Return the repr of the beginning of a text, at most 60 characters."""
    return f"{text[:60]!r:.60}"


def _parse_lines(text: str, path: Path) -> Iterable[Caption]:
    """Parse like the original: line by line, without context."""
    times: tuple[float, float] | None = None
    text_lines: list[str] = []
    for number, line in enumerate(map(str.strip, chain(text.splitlines(), "0")), 1):
        if line.isdigit():
            if text_lines and times is None:
                above = excerpt(text_lines[0])
                raise CaptionError(f"{path}, line {number}, start: no times for {above} above", "fix the file")
            if text_lines and times:
                yield Caption(*times, " ".join(text_lines))
            times, text_lines = None, []
        elif "-->" in line:
            times = _parse_times(line, path, number)
        elif line:
            text_lines.append(line)


def _parse_times(line: str, path: Path, number: int) -> tuple[float, float]:
    start, end = (side.strip() for side in line.split("-->", 1))
    try:
        return _parse_seconds(start), _parse_seconds(end)
    except ValueError as error:
        raise CaptionError(f"{path}, line {number}: {error!s:.100}", "write times as 00:00:01,000") from None


def _parse_seconds(time: str) -> float:
    parsed = datetime.strptime(time, "%H:%M:%S,%f")
    return parsed.hour * 3600 + parsed.minute * 60 + parsed.second + parsed.microsecond / 1e6
