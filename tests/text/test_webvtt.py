"""WebVTT files: what of them is read, what is skipped, and files that are broken or hostile."""

import runpy
import time
from pathlib import Path
from typing import Any

import pytest

from calce_jax.text import webvtt
from calce_jax.text.caption import Caption
from calce_jax.text.captions import MAX_BYTES, CaptionError
from calce_jax.text.webvtt import read_vtt


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "said.vtt"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


FULL = """\
WEBVTT - a film
Kind: captions
Language: en

STYLE
::cue { color: yellow }

REGION
id:fred width:40%

NOTE
spoken by nobody
42

1
00:00:01.000 --> 00:00:02.500 align:start position:0%
<v Roger Bingham>We are in <i>New York</i> &amp; here

introduction
00:03.250 --> 00:04.000
two
lines <00:00:03.700><c.yellow.bg_blue>in colour</c>

NOTE a line

01:00:05.000 --> 01:00:06.000 line:-1

NOTE the cue above has no text

01:00:07.000 --> 01:00:08.000
last"""


def test_times_and_text_of_every_cue(write):
    assert read_vtt(write(FULL)) == [
        Caption(1.0, 2.5, "We are in New York & here"),
        Caption(3.25, 4.0, "two lines in colour"),
        Caption(3607.0, 3608.0, "last"),
    ]
    assert read_vtt(write("\ufeff" + FULL.replace("\n", "\r\n"))) == read_vtt(write(FULL))


@pytest.mark.parametrize("text", ["", "\n", "WEBVTT", "WEBVTT\n\nNOTE nobody speaks\n"])
def test_a_file_without_cues_has_no_captions(write, text):
    assert read_vtt(write(text)) == []


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("a --> b", "a --> b"),
        ("<b>a</b><>b</>", "ab"),
        ("a&lt;i&gt;b", "a<i>b"),
        ("{\\an8}a", "a"),
        ("first\n \nthird", "first third"),  # a line of a space is not empty
        ("a\n00:03.000 --> 00:04.000\nb", "a"),  # times begin a cue without an empty line
    ],
)
def test_text_of_a_cue(write, written, text):
    assert read_vtt(write(f"WEBVTT\n\n00:01.000 --> 00:02.000\n{written}\n"))[0] == Caption(1.0, 2.0, text)


def test_cues_are_sorted_and_reversed_times_are_swapped(write):
    cues = "WEBVTT\n\n00:09.000 --> 00:08,500\nlate\n\n00:01 --> 00:02.5\nearly\n"
    assert read_vtt(write(cues)) == [Caption(1.0, 2.5, "early"), Caption(8.5, 9.0, "late")]


ROLLING = """\
WEBVTT
Kind: captions
Language: en

00:00:00.160 --> 00:00:02.470 align:start position:0%
 
hello<00:00:00.480><c> and</c><00:00:00.800><c> welcome</c>

00:00:02.470 --> 00:00:02.480 align:start position:0%
hello and welcome
 

00:00:02.480 --> 00:00:05.110 align:start position:0%
hello and welcome
to<00:00:02.800><c> my</c><00:00:03.040><c> channel</c>

00:00:05.110 --> 00:00:05.120 align:start position:0%
to my channel
 

00:00:05.120 --> 00:00:07.000 align:start position:0%
to my channel
today<00:00:05.600><c> we</c><00:00:06.000><c> cook</c>
"""  # noqa: W293 - as YouTube writes them


def test_rolling_captions_say_every_line_once(write):
    expected = [
        Caption(0.16, 2.48, "hello and welcome"),
        Caption(2.48, 5.12, "to my channel"),
        Caption(5.12, 7.0, "today we cook"),
    ]
    assert read_vtt(write(ROLLING)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1\n00:00:01,000 --> 00:00:02,000\na\n",
            r'said\.vtt, line 1: expected "WEBVTT", got \'1\'; .*name the file \.srt',
        ),
        ("WEBVTTX\n", r"line 1: expected \"WEBVTT\", got 'WEBVTTX'"),
        ("WEBVTT\n\n00:01.000 --> 00:0x\na\n", r"line 3: expected .*, got '00:01\.000 --> 00:0x'; fix"),
        ("WEBVTT\n\n00:01.000 --> 00:02.000\na\n\n00:03.x --> 00:04.000\nb\n", "line 6: expected"),
        ("WEBVTT\n\n00:01.000 --> 99999999:00:02.000\na\n", r"line 3: '99999999:00:02\.000' is 100000 hours or more"),
        (f"WEBVTT\n\n00:01.000 --> {'9' * 5000}:02\na\n", "line 3: '99999"),
        (b"WEBVTT\n\xff\xfe", "not UTF-8 at byte 7"),
    ],
)
def test_a_broken_file_is_named_with_the_line(write, text, message):
    with pytest.raises(CaptionError, match=message):
        read_vtt(write(text))


def test_a_missing_or_large_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.vtt: no such file of captions"):
        read_vtt(tmp_path / "none.vtt")
    with (tmp_path / "film.vtt").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(CaptionError, match=r"film\.vtt: 50,000,001 bytes, .*; give the \.vtt file of a video"):
        read_vtt(tmp_path / "film.vtt")


@pytest.fixture(scope="module")
def unchecked() -> dict[str, Any]:
    """Return the module's names without runtime type checks, which take longer than parsing."""
    return runpy.run_path(webvtt.__file__)


CUE = "00:01.000 --> 00:02.000\n"
HOSTILE = {
    "digits": ("", "1"),
    "colons": ("", "1:"),
    "blank lines": ("", "\n"),
    "spaces before an arrow": ("0:0:1", " "),
    "arrows": (CUE, "-->\n"),
    "times alone": ("", CUE),
    "tags": (CUE, "<a"),
    "times in tags": (CUE, "<1"),
    "an open tag": (CUE + "<a", " "),
    "cues": ("", CUE + "hello there " * 12 + "\n\n"),
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.slow
def test_reading_takes_time_linear_in_the_file(write, unchecked, kind):
    before, unit = HOSTILE[kind]
    path = write("WEBVTT\n\n" + before + unit * (1_000_000 // len(unit)))
    began = time.process_time()
    unchecked["read_vtt"](path)
    assert time.process_time() - began < 15  # half a second, and several with type checks; quadratic ones take hours
