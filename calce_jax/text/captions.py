"""What is said in a video and when: read from .srt files, cleaned, and joined to the stretches in which somebody talks.

Reading keeps what the file says. Cleaning and joining come later, from the same entries: the intervals of speech are
made of all of them, the captions of those that are English words.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import srt

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.text.text_row import Caption, Number

FILLERS = frozenset({"the", "a", "o", "oh", "yeah", "uh", "ah", "yep", "uh-no", "hmm"})
ENGLISH_SHARE = 0.8  # of a caption's words that must be made of a to z alone
PAUSE_S = 2.5  # the longest silence that does not end a stretch of speech

_MARKUP = re.compile(r"</?[A-Za-z][^<>]*>|\{\\[^{}]*\}")
_TIMES = re.compile(r"^\s*\d+:\S*\s*-->.*$", re.MULTILINE)
_SIGNS = re.compile(r"[^\w\s]")


class CaptionError(UserError):
    """Captions that cannot be read; the message names file, line and remedy."""


def read_srt(path: str | Path, behaviour: Behaviour = "default") -> list[Caption]:
    """Read every entry that has text, in the file's order; a file without entries gives none.

    By default a byte order mark, "." before the milliseconds, lines of digits or "-->" inside a text, and markup are
    understood. "reference" reads as the original does: a byte order mark loses the first entry, a line of digits is
    always the number of an entry and a line with "-->" its times, so the other three are errors where they occur.

    Raises:
      FileNotFoundError: there is no such file.
      CaptionError: it is not UTF-8, or something in it is no entry.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of captions; put it there, empty if nothing is said")
    try:
        text = path.read_text(encoding="utf-8" if behaviour == "reference" else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(f"{path}: not UTF-8 at byte {error.start}", "save it as UTF-8") from None
    return list(_by_lines(text, path) if behaviour == "reference" else _by_blocks(text, path))


def check_srt(content: bytes) -> None:
    """Check that the content of an .srt file can be read by default.

    Raises:
      ValueError: it cannot.
    """
    for _ in _by_blocks(content.decode("utf-8-sig"), Path("captions")):
        pass


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


def _by_blocks(text: str, path: Path) -> Iterable[Caption]:
    try:
        entries = list(srt.parse(text))
    except srt.SRTParseError as error:
        line = text.count("\n", 0, error.expected_start) + 1
        raise _malformed(path, line, error.unmatched_content.strip().split("\n")[0]) from None
    for entry in entries:
        # The parser takes an entry whose times are broken for more text of the one before.
        if broken := _TIMES.search(entry.content):
            line = text[: text.index(entry.content)].count("\n") + entry.content[: broken.start()].count("\n") + 1
            raise _malformed(path, line, broken.group())
        said = " ".join(_MARKUP.sub("", entry.content).split())
        if said:
            yield Caption(entry.start.total_seconds(), entry.end.total_seconds(), said)


def _malformed(path: Path, line: int, found: str) -> CaptionError:
    return CaptionError(
        f'{path}, line {line}: expected a number, then "00:00:01,000 --> 00:00:02,500", then text, got {found!r:.60}',
        "mend the file, or empty it if there are no captions",
    )


def _by_lines(text: str, path: Path) -> Iterable[Caption]:
    """Read as the original does: what a line is depends on that line alone."""
    times: tuple[float, float] | None = None
    said: list[str] = []
    for number, line in enumerate([*(line.strip() for line in text.splitlines()), "0"], 1):
        if line.isdigit():
            if said and times is None:
                raise CaptionError(f"{path}, line {number}, start: no times for {said[0]!r:.60} above", "mend the file")
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
        raise CaptionError(f"{path}, line {number}: {error}", "write times as 00:00:01,000") from None


def _seconds(time: str) -> float:
    moment = datetime.strptime(time, "%H:%M:%S,%f")
    return moment.hour * 3600 + moment.minute * 60 + moment.second + moment.microsecond / 1e6
