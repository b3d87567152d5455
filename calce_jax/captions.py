"""What is said in a video and when: read from .srt files, cleaned, and joined to the stretches in which somebody talks.

Reading keeps what the file says. Cleaning and joining come later, from the same entries: the intervals of speech are
made of all of them, the captions of those that are English words.
"""

import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import chain
from pathlib import Path

from calce_jax.text_row import Behaviour, Caption, Number

FILLERS = frozenset({"the", "a", "o", "oh", "yeah", "uh", "ah", "yep", "uh-no", "hmm"})
ENGLISH_SHARE = 0.8  # of a caption's words that must be made of a to z alone
PAUSE_S = 2.5  # the longest silence that does not end a stretch of speech

MAX_BYTES = 50_000_000  # of a file; a film of two hours takes 200 kB
MAX_HOURS = 100_000  # times are smaller, so that seconds fit into 32 bits

# Anybody may upload captions, and everything below takes time linear in the text. Repeats are possessive (`*+`) where a
# shorter match cannot succeed either: trying it again at every length is what makes expressions quadratic.
_NUMBER = r"-?+[0-9]++\.?+[0-9]*+"
_SEPARATOR = "[,.:\N{FULLWIDTH COMMA}\N{FULLWIDTH FULL STOP}\N{IDEOGRAPHIC FULL STOP}\N{FULLWIDTH COLON}]"
_TIME = _SEPARATOR.join(["([0-9]++)"] * 3) + f"{_SEPARATOR}?+([0-9]*+)"  # hours, minutes, seconds, their fraction
# The times of an entry follow its number on a later line; the number may be missing.
_NUMBER_ABOVE = rf"{_NUMBER}\s*+(?<=\n)"
_HEADER = re.compile(rf"(?:{_NUMBER_ABOVE})?{_TIME} *+-[ -] *+> *+{_TIME}[^\n]*+\n?+")
_START = re.compile(rf"^(?=({_NUMBER_ABOVE})?{_TIME})", re.MULTILINE)
_NUMBER_ALONE = re.compile(rf"{_NUMBER}\s++(?=\S)")
_BROKEN_TIMES = re.compile(r"^[^\S\n]*+(-?+\d++:\S*\s*-->)", re.MULTILINE)
_SPACE = re.compile(r"\s*+")
_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")
# Without the ";" it may be part of an address ("?a=1&copy=2"); more digits than these name no character.
_ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")
_SIGNS = re.compile(r"[^\w\s]")


class CaptionError(ValueError):
    """Captions that cannot be read; the message names file, line and remedy."""


def read_srt(path: str | Path, behaviour: Behaviour = "default") -> list[Caption]:
    """Read every entry that has text; a file without entries gives none.

    By default entries are returned in order of their starts, those that end before they start with both times
    exchanged. A byte order mark, "." before the milliseconds, ",5" for 500 ms, lines of digits or "-->" inside a text,
    entities ("&amp;") and markup are understood. "reference" reads as the original does, in the order of the file: a
    byte order mark loses the first entry; a line of digits is always the number of an entry and a line with "-->" its
    times, so both are errors inside a text, as is "." before the milliseconds.

    Time and memory are linear in the size of the file.

    Raises:
      FileNotFoundError: there is no such file.
      CaptionError: it is larger than 50 MB, not UTF-8, or something in it is no entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of captions; put it there, empty if nothing is said")
    if (size := path.stat().st_size) > MAX_BYTES:
        raise CaptionError(
            f"{path}: {size:,} bytes, more than the {MAX_BYTES:,} that captions may have; give the .srt file of a video"
        )
    try:
        text = path.read_text(encoding="utf-8" if behaviour == "reference" else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if behaviour == "reference":
        return list(_by_lines(text, path))
    return sorted(_by_entries(text, path), key=lambda caption: caption.start)


def clean(captions: Sequence[Caption]) -> list[Caption]:
    """Join repeats and keep what is English: lower case, without signs and fillers.

    These are the original's rules; captions in which fewer than four of five words consist of a to z are dropped.
    """
    kept = ((caption, clean_text(caption.text)) for caption in _joined(captions))
    return [replace(caption, text=text) for caption, text in kept if text]


def clean_text(text: str) -> str | None:
    """Return a caption's words, or `None` where nothing remains of it or too little is English."""
    words = _SIGNS.sub("", text).lower().split()
    english = [word for word in words if word.isascii() and word.isalpha()]
    if len(english) < ENGLISH_SHARE * len(words):
        return None
    return " ".join(word for word in words if word not in FILLERS) or None


def spoken_intervals(captions: Sequence[Caption], behaviour: Behaviour = "default") -> list[tuple[Number, Number]]:
    """Return the stretches [start, end], in seconds, in which somebody talks with pauses of at most 2.5 s.

    Args:
      captions: as read, not cleaned, in order of time.
      behaviour: "reference" lets a stretch end with its last caption, even where an earlier one goes on for longer, as
        the original does; by default it ends with the latest.
    """
    intervals: list[tuple[Number, Number]] = []
    for caption in captions:
        start, end = intervals[-1] if intervals else (0.0, float("-inf"))
        if caption.start - end <= PAUSE_S:
            intervals[-1] = (start, caption.end if behaviour == "reference" else max(end, caption.end))
        else:
            intervals.append((caption.start, caption.end))
    return intervals


def _joined(captions: Iterable[Caption]) -> list[Caption]:
    """Make one caption of those that follow each other at once with the same text."""
    joined: list[Caption] = []
    for caption in captions:
        if joined and (joined[-1].end, joined[-1].text) == (caption.start, caption.text):
            joined[-1] = replace(joined[-1], end=caption.end)
        else:
            joined.append(caption)
    return joined


def _by_entries(text: str, path: Path) -> Iterator[Caption]:
    """Read entries: a number, which may be missing, a line of times, and text up to where the next entry starts.

    The same texts are entries as for the library srt 3.5.3, whose expression takes minutes for a long line of digits.
    """
    starts = _START.finditer(text)
    at = _end(_SPACE, text, 1 if text.startswith("\ufeff") else 0)  # of a second mark; the first is gone
    while at < len(text):
        header = _HEADER.match(text, at)
        if header is None:
            raise _malformed(path, text, _end(_NUMBER_ALONE, text, at))
        first = header.end()
        at = next((start.start() for start in starts if _ends_text(text, first, start)), len(text))
        # An entry whose times are broken starts nowhere, and would be more text of the one before.
        if broken := _BROKEN_TIMES.search(text, first, at):
            raise _malformed(path, text, broken.start(1))
        said = " ".join(_ENTITY.sub(_character, _MARKUP.sub("", text[first:at])).split())
        start, end = sorted((_header_time(header, 1, path), _header_time(header, 5, path)))
        if said:
            yield Caption(start, end, said)


def _ends_text(text: str, first: int, start: re.Match[str]) -> bool:
    """Whether the text that begins at `first` ends where an entry could start: below a blank line, or at a number.

    Digits right below the times are text, as in "42"; so are times without a number in the middle of a text.
    """
    at = start.start()
    return at > first and (start[1] is not None or (at > first + 1 and text.startswith("\n\n", at - 2)))


def _header_time(header: re.Match[str], group: int, path: Path) -> float:
    """Return the seconds that four groups of a header say, from `group` on."""
    hours, minutes, seconds, fraction = header.group(group, group + 1, group + 2, group + 3)
    # Through float, because int() refuses texts of some thousand digits.
    whole = (float(hours) * 60 + float(minutes)) * 60 + float(seconds)
    if whole >= MAX_HOURS * 3600:
        time = _excerpt(header.string[header.start(group) : header.end(group + 3)])
        line = _line(header.string, header.start(group))
        raise CaptionError(f"{path}, line {line}: {time} is {MAX_HOURS} hours or more; write times as 00:00:01,000")
    # One division of whole microseconds: a sum of rounded parts may not be the float nearest to what is written.
    return (int(whole) * 1_000_000 + int(fraction[:6].ljust(6, "0"))) / 1_000_000


def _character(entity: re.Match[str]) -> str:
    return html.unescape(entity[0])


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    """Return where a match of `pattern` at `at` ends; without one, `at`."""
    match = pattern.match(text, at)
    return match.end() if match else at


def _line(text: str, at: int) -> int:
    return text.count("\n", 0, at) + 1


def _malformed(path: Path, text: str, at: int) -> CaptionError:
    found = text[at : at + 60].partition("\n")[0]
    return CaptionError(
        f'{path}, line {_line(text, at)}: expected a number, then "00:00:01,000 --> 00:00:02,500", then text, '
        f"got {_excerpt(found)}; mend the file, or empty it if there are no captions"
    )


def _excerpt(text: str) -> str:
    """Return the repr of a text, of a long one that of its beginning."""
    return f"{text[:60]!r:.60}"


def _by_lines(text: str, path: Path) -> Iterable[Caption]:
    """Read as the original does: what a line is depends on that line alone."""
    times: tuple[float, float] | None = None
    said: list[str] = []
    for number, line in enumerate(map(str.strip, chain(text.splitlines(), "0")), 1):
        if line.isdigit():
            if said and times is None:
                above = _excerpt(said[0])
                raise CaptionError(f"{path}, line {number}, start: no times for {above} above; mend the file")
            if said and times:
                yield Caption(*times, " ".join(said))
            times, said = None, []
        elif "-->" in line:
            times = _times(line, path, number)
        elif line:
            said.append(line)


def _times(line: str, path: Path, number: int) -> tuple[float, float]:
    start, end = (side.strip() for side in line.split("-->", 1))
    try:
        return _seconds(start), _seconds(end)
    except ValueError as error:
        raise CaptionError(f"{path}, line {number}: {error!s:.100}; write times as 00:00:01,000") from None


def _seconds(time: str) -> float:
    moment = datetime.strptime(time, "%H:%M:%S,%f")
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6
