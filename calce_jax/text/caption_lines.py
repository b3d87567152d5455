"""Captions broken into lines of a maximal width, and into several captions where they have too many lines.

As subtitle makers do it: as few captions and lines as possible, of similar length, that end with a sentence or a clause
where they can. Lines break at spaces, and between Chinese and Japanese characters, which are written without.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from unicodedata import east_asian_width

from calce_jax.text.caption import Caption, Word

DEFAULT_LINE_COUNT = 2

# Chinese and Japanese characters (Korean has spaces). A mark that may not begin a line stays with the character before
# it, one that may not end a line with the one after it, and so do letters and digits of other scripts with each other.
_WIDE = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
_OPENING = "「『（【〈《〔［｛“‘〝"
_CLOSING = "」』）】〉》〕］｝”’〟、。，．・：；！？…‥ー〜々ゝゞヽヾぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶ"
_UNIT = re.compile(
    rf"[{_OPENING}]*(?:[{_WIDE}]|[^{_WIDE}{_OPENING}{_CLOSING}]+|(?=[{_CLOSING}]))[{_CLOSING}]*|[{_OPENING}]+"
)
_SENTENCE_END = re.compile(r"[.!?…。！？．][\"'”’)」』）]*$")
_CLAUSE_END = re.compile(r"[,;:、，；：–—][\"'”’)」』）]*$")
# What a break costs beside uneven widths, of which a part that is empty costs 1: after a clause, and elsewhere.
_CLAUSE_COST, _OTHER_COST = 0.1, 0.5


@dataclass(frozen=True)
class _Unit:
    """Text that is not broken, the space before it, and its columns without the space."""

    space: str
    text: str
    width: int


def break_captions(captions: Sequence[Caption], max_line_width: int, max_line_count: int) -> list[Caption]:
    r"""Return captions with "\n" between lines; a caption with too many of them becomes several.

    The parts of a caption follow each other without a gap unless its words have times, by which they then begin and
    end. Without them its time is shared in proportion to the characters. A word that is wider than a line has a line of
    its own.

    Args:
      captions: their spaces and line breaks are taken for single spaces.
      max_line_width: columns; a full-width character (Chinese, Japanese, Korean) has two.
      max_line_count: lines of a caption.
    """
    return [part for caption in captions for part in _break_caption(caption, max_line_width, max_line_count)]


def text_width(text: str) -> int:
    """Return the columns of a text: two for each full-width character."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def _break_caption(caption: Caption, max_line_width: int, max_line_count: int) -> list[Caption]:
    parts = _partition(_split_units(caption.text), max_line_width, max_line_count)
    texts = ["\n".join(map(_join, _partition(part, max_line_width, 1))) for part in parts]
    if len(texts) <= 1:
        return [replace(caption, text=text) for text in texts]
    return _share_time(caption, texts)


def _split_units(text: str) -> list[_Unit]:
    units = []
    for word in text.split():
        space = " " if units else ""
        for match in _UNIT.finditer(word):
            units.append(_Unit(space, match[0], text_width(match[0])))
            space = ""
    return units


def _join(units: Sequence[_Unit]) -> str:
    return "".join(unit.space + unit.text for unit in units).strip()


def _partition(units: Sequence[_Unit], max_width: int, max_lines: int) -> list[Sequence[_Unit]]:
    """Return the units in as few parts of `max_lines` lines as possible, of similar widths, that end well."""
    num_parts = -(-max(_line_numbers(units, max_width), default=0) // max_lines)
    if num_parts <= 1:
        return [units] if units else []
    target = sum(unit.width for unit in units) / num_parts
    # Of the first n units: number of parts, cost, and where the last part begins.
    best: list[tuple[int, float, int]] = [(0, 0.0, 0)] + [(len(units) + 1, 0.0, 0)] * len(units)
    for begin in range(len(units)):
        width = 0
        for end, num_lines in enumerate(_line_numbers(units[begin:], max_width), begin + 1):
            if num_lines > max_lines:
                break
            width += units[end - 1].width
            cost = best[begin][1] + (width / target - 1) ** 2
            if end < len(units):
                cost += _break_cost(units[end - 1].text)
            best[end] = min(best[end], (best[begin][0] + 1, cost, begin))
    parts, end = [], len(units)
    while end:
        begin = best[end][2]
        parts.append(units[begin:end])
        end = begin
    return parts[::-1]


def _line_numbers(units: Sequence[_Unit], max_width: int) -> Iterator[int]:
    """Yield the number of the line of each unit, from 1, where every line is filled as far as it goes."""
    number = width = 0
    for unit in units:
        if number and width + len(unit.space) + unit.width <= max_width:
            width += len(unit.space) + unit.width
        else:
            number, width = number + 1, unit.width
        yield number


def _break_cost(text: str) -> float:
    if _SENTENCE_END.search(text):
        return 0.0
    return _CLAUSE_COST if _CLAUSE_END.search(text) else _OTHER_COST


def _share_time(caption: Caption, texts: Sequence[str]) -> list[Caption]:
    """Return a caption for each text, with its part of the time and the words that begin in it."""
    # The time of every character: inside a word, or inside the whole caption, characters are equally long.
    spans = caption.words or (Word(caption.text, float(caption.start), float(caption.end), 1.0),)
    span_ends = list(accumulate(_num_characters(span.word) for span in spans))
    captions, begin = [], 0
    for text in texts:
        end = begin + _num_characters(text)
        words = tuple(
            span
            for span, span_end in zip(spans, span_ends, strict=True)
            if begin <= span_end - _num_characters(span.word) < end
        )
        start = _second(spans, span_ends, begin, is_end=False)
        stop = _second(spans, span_ends, end, is_end=True)
        captions.append(Caption(start, stop, text, words if caption.words else ()))
        begin = end
    return captions


def _second(spans: Sequence[Word], span_ends: Sequence[int], character: int, *, is_end: bool) -> float:
    """Return when a character begins, or, with `is_end`, when the one before it ends."""
    for span, span_end in zip(spans, span_ends, strict=True):
        if character < span_end or (is_end and character == span_end):
            length = _num_characters(span.word)
            share = (character - (span_end - length)) / length if length else 0.0
            return span.start + share * (span.end - span.start)
    return spans[-1].end


def _num_characters(text: str) -> int:
    return len("".join(text.split()))
