"""Captions: recorded results of the original, and files that the original cannot read."""

import json
import runpy
import time
from typing import Any

import pytest

from calce_jax.text import captions
from calce_jax.text.captions import (
    MAX_BYTES,
    Caption,
    CaptionError,
    clean_captions,
    clean_text,
    read_srt,
    speech_intervals,
)

HEADER = "1\n00:00:01,000 --> 00:00:02,000\n"
GOOD = "1\n00:00:00,000 --> 00:00:03,000\nhello there\n\n2\n00:00:04,000 --> 00:00:05,500\ngoodbye\n"


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes):
        path = tmp_path / "said.srt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def as_recorded(captions: list[Caption]) -> list[dict]:
    return [{"start": caption.start, "text": caption.text, "end": caption.end} for caption in captions]


def recorded_files(shared) -> dict[str, dict]:
    files = json.loads((shared / "golden" / "08_subtitles.json").read_text())["files"]
    return {name: result for name, result in files.items() if (shared / f"golden/08_srt/{name}.srt").is_file()}


def test_reference_gives_the_recorded_captions_intervals_and_errors(shared):
    files = recorded_files(shared)
    assert len(files) == 16
    for name, result in files.items():
        path = shared / f"golden/08_srt/{name}.srt"
        if result["error"]:
            with pytest.raises(CaptionError, match="start" if "KeyError" in result["error"] else "time data"):
                read_srt(path, "reference")
            continue
        raw_captions = read_srt(path, "reference")
        assert as_recorded(clean_captions(raw_captions)) == result["combined_subtitles"], name
        assert [list(span) for span in speech_intervals(raw_captions, "reference")] == result["subtitle_durations"], (
            name
        )


def test_default_differs_from_the_original_only_where_that_fails(shared):
    """The excluded files are those on which the original crashes, loses an entry or ends an interval too early."""
    excluded = {"multiline", "bom", "bad_time_dot", "arrow_in_text", "only_index"}
    for name in recorded_files(shared).keys() - excluded:
        path = shared / f"golden/08_srt/{name}.srt"
        assert clean_captions(read_srt(path)) == clean_captions(read_srt(path, "reference")), name


def test_cleaning_gives_the_recorded_words(shared):
    recorded = json.loads((shared / "golden" / "08_subtitles.json").read_text())["files"]
    for text, words in recorded["text_filter"]:
        assert clean_text(text) == words, text


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "\ufeff" + GOOD,
        GOOD.replace(",", "."),
        GOOD.replace("\n", "\r\n"),
        GOOD.rstrip("\n"),
        GOOD.replace("hello", "<i>hello</i>"),
        GOOD.replace("hello there", "hello\nthere"),
        GOOD + "\n3\n00:00:06,000 --> 00:00:07,000\n\n",
    ],
    ids=["plain", "bom", "dots", "crlf", "no end", "markup", "two lines", "no text"],
)
def test_default_reads_common_variants(write, text):
    assert read_srt(write(text)) == [Caption(0.0, 3.0, "hello there"), Caption(4.0, 5.5, "goodbye")]


def test_default_keeps_digits_and_arrows_inside_text(write):
    text = GOOD.replace("hello there", "42\nare --> here")
    assert read_srt(write(text))[0] == Caption(0.0, 3.0, "42 are --> here")


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        (HEADER + "a\n2\n00:00:03,000 --> 00:00:04,000\nb\n", ["a", "b"]),
        (HEADER + "a\n\n00:00:03,000 --> 00:00:04,000\nb\n", ["a", "b"]),
        (HEADER + "a\n\n\n2.5\n\n00:00:03,000 --> 00:00:04,000 X1:10\nb\n", ["a", "b"]),
        (HEADER + "a\n\nmore\n\n2\n00:00:03,000 --> 00:00:04,000\nb\n", ["a more", "b"]),
        (HEADER + "a\n\n2\n", ["a 2"]),
        (HEADER + "\n2\n00:00:03,000 --> 00:00:04,000\nb\n", ["b"]),
        ("1\n0:0:1 -> 0:0:2\na\n\n2\n0.0.3. - > 0:0:4\uff0c5\nb\n".replace("->", "-->"), ["a", "b"]),
        (HEADER + "a\n12:30:00 is noon\n", ["a 12:30:00 is noon"]),
        (HEADER + "42\n12:30:00 is noon\n", ["42 12:30:00 is noon"]),
        (HEADER + "\n12:30:00 is noon\n", ["12:30:00 is noon"]),
        ("\ufeff\ufeff \n" + HEADER + "a", ["a"]),
        (HEADER, []),
        (HEADER[:-1], []),
        ("7" * 5000 + HEADER + "a", ["a"]),
    ],
)
def test_default_finds_where_entries_start(write, text, texts):
    assert [caption.text for caption in read_srt(write(text))] == texts


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("1,5", 1.5), ("1,50", 1.5), ("1.05", 1.05), ("1,500", 1.5), ("1,", 1.0), ("1", 1.0), ("1,1234567", 1.123456)],
)
def test_digits_behind_the_seconds_are_their_fraction(write, written, seconds):
    assert read_srt(write(f"1\n00:00:{written} --> 00:01:02,25\na\n")) == [Caption(seconds, 62.25, "a")]


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("the ball &amp; the box &gt;&gt; are red", "the ball & the box >> are red"),
        ("&lt;i&gt;red&lt;/i&gt; <b>&quot;ball&quot;</b>&nbsp;&#39;&#x41;&eacute;", '<i>red</i> "ball" \'A\xe9'),
        ("Q&A; a &copy= b & c; &nosuchname; &#" + "1" * 5000 + ";", None),
    ],
)
def test_entities_are_the_characters_they_stand_for(write, written, text):
    assert read_srt(write(HEADER + written))[0].text == (text or written)
    assert read_srt(write(HEADER + written), "reference")[0].text == written
    assert read_srt(write(HEADER + "&nbsp;\n")) == []


def test_default_returns_captions_in_order_and_times_turned(write):
    text = "1\n00:00:08,000 --> 00:00:09,000\nlate\n\n2\n00:00:03,000 --> 00:00:01,000\nearly\n"
    early, late = Caption(1.0, 3.0, "early"), Caption(8.0, 9.0, "late")
    assert read_srt(write(text)) == [early, late]
    assert read_srt(write(text), "reference") == [late, Caption(3.0, 1.0, "early")]
    same_start = HEADER + "z\n\n" + HEADER + "a\n"
    assert [caption.text for caption in read_srt(write(same_start))] == ["z", "a"]


@pytest.mark.parametrize("behaviour", ["default", "reference"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_has_no_captions(write, text, behaviour):
    assert read_srt(write(text), behaviour) == []
    assert clean_captions([]) == []
    assert speech_intervals([], behaviour) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("this is no srt file\n", 1),
        (GOOD + "\n3\n00:00:xx,000 --> 00:00:09,000\nlast\n", 10),
        ("1\n", 1),
        ("\n\n1\n\n00:00:-02,000 --> 00:00:01,000\nfirst\n", 5),
        (GOOD + "\n\n3\n\n00:00:-02,000 --> 00:00:01,000\nlast\n", 12),
        (GOOD + "\n3\n-00:00:02,000 --> 00:00:01,000\nlast\n", 10),
        (GOOD + "\n3\n00:00:02,000\n--> 00:00:03,000\nlast\n", 10),
        (GOOD + "\n3\n00:00:02,000 to 00:00:03,000\nlast\n", 10),
        (GOOD + "\n00:00:02,000 to 00:00:03,000\nlast\n", 9),
        (HEADER + "2\n00:00:03,000 --> 00:00:04,000\nlast\n", 4),
        (HEADER + "\n00:00:03,000 --> 00:00:04,000\nlast\n", 4),
        (HEADER + "a\n00:00:03,000 --> 00:00:04,000\nlast\n", 4),
        ("a" * 5000, 1),
    ],
)
def test_a_malformed_file_is_named_with_its_line(write, text, line):
    with pytest.raises(CaptionError, match=rf"said\.srt, line {line}: expected a number.*fix the file") as error:
        read_srt(write(text))
    assert str(error.value).count("a") < 200


def test_reference_names_a_long_text_without_times_by_its_beginning(write):
    with pytest.raises(CaptionError, match=r"line 2, start: no times for 'a{59} above; fix the file"):
        read_srt(write("a" * 5000), "reference")


def test_missing_and_undecodable_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.srt: no such file of captions"):
        read_srt(tmp_path / "none.srt")
    with pytest.raises(CaptionError, match=r"said\.srt: not UTF-8 at byte 2"):
        read_srt(write(b"1\n\xff\xfe"))


@pytest.mark.parametrize("digits", ["6000000", "9999999999", "9" * 400, "9" * 5000])
@pytest.mark.parametrize("times", ["{}:00:01,000 --> 00:00:02,000", "00:00:01,000 --> 00:{}:02,000"])
def test_a_time_too_great_is_named_with_its_line(write, times, digits):
    path = write(GOOD + f"\n3\n{times.format(digits)}\nlast\n")
    with pytest.raises(CaptionError, match=r"said\.srt, line 10: '.* is 100000 hours or more; write") as default:
        read_srt(path)
    with pytest.raises(CaptionError, match=r"said\.srt, line 10: time data .*; write times as") as reference:
        read_srt(path, "reference")
    assert max(len(str(error.value)) for error in (default, reference)) < len(str(path)) + 200


@pytest.mark.parametrize("behaviour", ["default", "reference"])
def test_a_file_larger_than_captions_are_is_named(tmp_path, behaviour):
    path = tmp_path / "film.srt"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CaptionError, match=r"film\.srt: 50,000,001 bytes, more than the limit of 50,000,000"):
        read_srt(path, behaviour)


@pytest.fixture(scope="module")
def unchecked() -> dict[str, Any]:
    """Return the module's names without runtime type checks, which take longer than parsing."""
    return runpy.run_path(captions.__file__)


BEHIND_A_NUMBER = HEADER + "a\n1"
HOSTILE = {
    "digits": ("", "1"),
    "digits in a text": (HEADER, "1"),
    "digits of a time": ("1\n0:0:1 --> 0:0:", "1"),
    "blank lines": ("", "\n"),
    "blank lines in a text": (BEHIND_A_NUMBER, "\n"),
    "spaces": (BEHIND_A_NUMBER, " "),
    "spaces before an arrow": ("1\n0:0:1", " "),
    "arrows": ("", "-->\n"),
    "arrows in a text": (HEADER, "-->\n"),
    "colons": (HEADER, "1:"),
    "lines that begin like times": (HEADER, "0:0:0\n"),
    "one long line": (HEADER, "word "),
    "tags": (HEADER, "<a"),
    "an open tag": (HEADER + "<a", " "),
    "lower than": (HEADER, "<"),
    "braces": (HEADER, "{\\"),
    "ampersands": (HEADER, "&a"),
    "entries": ("", HEADER + "hello there " * 12 + "\n\n"),
}


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [*(("default", kind) for kind in HOSTILE), *(("reference", kind) for kind in ("digits", "blank lines", "entries"))],
)
@pytest.mark.parametrize("size", [1_000_000, pytest.param(10_000_000, marks=pytest.mark.release)])
def test_reading_takes_time_linear_in_the_file(write, unchecked, behaviour, kind, size):
    """10 MB take one to three seconds; a regular expression quadratic in any of these takes hours."""
    before, unit = HOSTILE[kind]
    path = write(before + unit * (size // len(unit)))
    began = time.process_time()
    message = ""
    try:
        unchecked["clean_captions"](unchecked["read_srt"](path, behaviour))
    except unchecked["CaptionError"] as error:
        message = str(error)
    assert time.process_time() - began < 20 * size / 10_000_000
    assert len(message) < len(str(path)) + 250


def test_speech_ends_with_the_caption_that_ends_last():
    raw_captions = [Caption(0, 30, "long"), Caption(5, 6, "inside"), Caption(8, 9, "also"), Caption(33, 34, "later")]
    assert speech_intervals(raw_captions) == [(0, 30), (33, 34)]
    assert speech_intervals(raw_captions, "reference") == [(0, 9), (33, 34)]


def test_four_of_five_words_must_be_english():
    assert clean_text("one two three four 5") == "one two three four 5"
    assert clean_text("one two three 4 5") is None
    assert clean_text("où est la gare") is None
