"""Captions: the original's rules against recorded results, and files that the original cannot read."""

import json

import pytest

from calce_jax.text.captions import Caption, CaptionError, clean, clean_text, read_srt, spoken_intervals

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
        captions = read_srt(path, "reference")
        assert as_recorded(clean(captions)) == result["combined_subtitles"], name
        assert [list(span) for span in spoken_intervals(captions, "reference")] == result["subtitle_durations"], name


def test_default_differs_from_the_original_only_where_that_fails(shared):
    """The files apart are those on which the original crashes, loses an entry, or ends a stretch too early."""
    apart = {"multiline", "bom", "bad_time_dot", "arrow_in_text", "only_index"}
    for name in recorded_files(shared).keys() - apart:
        path = shared / f"golden/08_srt/{name}.srt"
        assert clean(read_srt(path)) == clean(read_srt(path, "reference")), name


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
def test_default_reads_files_of_all_habits(write, text):
    assert read_srt(write(text)) == [Caption(0.0, 3.0, "hello there"), Caption(4.0, 5.5, "goodbye")]


def test_default_takes_digits_and_arrows_for_text(write):
    text = GOOD.replace("hello there", "42\nare --> here")
    assert read_srt(write(text))[0] == Caption(0.0, 3.0, "42 are --> here")


@pytest.mark.parametrize("behaviour", ["default", "reference"])
@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_has_no_captions(write, text, behaviour):
    assert read_srt(write(text), behaviour) == []
    assert clean([]) == []
    assert spoken_intervals([], behaviour) == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("this is no srt file\n", 1),
        (GOOD + "\n3\n00:00:xx,000 --> 00:00:09,000\nlast\n", 10),
        ("1\n", 1),
    ],
)
def test_a_malformed_file_is_named_with_its_line(write, text, line):
    with pytest.raises(CaptionError, match=rf"said\.srt, line {line}: expected a number.*mend the file"):
        read_srt(write(text))


def test_missing_and_undecodable_files_are_named(write, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.srt: no such file of captions"):
        read_srt(tmp_path / "none.srt")
    with pytest.raises(CaptionError, match=r"said\.srt: not UTF-8 at byte 2"):
        read_srt(write(b"1\n\xff\xfe"))


def test_speech_ends_with_the_caption_that_ends_last():
    captions = [Caption(0, 30, "long"), Caption(5, 6, "inside"), Caption(8, 9, "also"), Caption(33, 34, "later")]
    assert spoken_intervals(captions) == [(0, 30), (33, 34)]
    assert spoken_intervals(captions, "reference") == [(0, 9), (33, 34)]
