"""Search of captions by their words: which are found, in what order, as which seconds."""

import random
import sqlite3
import string
import subprocess
import sys
from pathlib import Path

import pytest

from calce_jax.search.speech_index import MAX_HIT_SECONDS, SpeechIndex, SpeechIndexError, search_speech
from calce_jax.text.caption import Caption

FILM, TALK = Path("film.mp4"), Path("talks/talk.mp4")
CAPTIONS = {
    FILM: [
        Caption(0, 2, "We walked over the old"),
        Caption(2.5, 4, "bridge yesterday."),
        Caption(20, 22, "A bridge in the park, said the painter"),
        Caption(30, 32, "the the the"),
    ],
    TALK: [Caption(5, 6, "Café tables & chairs"), Caption(90, 95, "Nothing is said of rivers")],
}


def spans(query: str, captions: dict[Path, list[Caption]] = CAPTIONS, top: int = 10) -> list[tuple[str, float, float]]:
    return [(hit.video.name, hit.start, hit.end) for hit in search_speech(captions, query, top)]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("painter", [("film.mp4", 20, 22)]),
        ("PAINTERS", [("film.mp4", 20, 22)]),
        ("walking", [("film.mp4", 0, 2)]),
        ("bridge", [("film.mp4", 2.5, 4), ("film.mp4", 20, 22)]),  # the shorter caption first
        ("bridges walk", [("film.mp4", 0, 4), ("film.mp4", 20, 22)]),  # in any order, over two captions
        ("the painter's bridge", [("film.mp4", 20, 22), ("film.mp4", 2.5, 4)]),
        ("painter\u2019s", [("film.mp4", 20, 22)]),
        ("cafe", [("talk.mp4", 5, 6)]),
        ("river xylophone", [("talk.mp4", 90, 95)]),
        ("xylophone", []),
        ("the xylophone", []),  # "the" is said
        ("the", [("film.mp4", 30, 32), ("film.mp4", 20, 22), ("film.mp4", 0, 2)]),
        ('"old bridge"', [("film.mp4", 0, 4)]),  # over two captions
        ('"walked over"', [("film.mp4", 0, 2)]),
        ('"over walked"', []),
        ('"painter bridge"', []),
        ('bridge "the park"', [("film.mp4", 20, 22)]),
        ("\N{LEFT DOUBLE QUOTATION MARK}over walked\N{RIGHT DOUBLE QUOTATION MARK}", []),
        ('"over walked', [("film.mp4", 0, 2)]),  # a quote that is not closed quotes nothing
        ('"walked over" "said"', []),  # every phrase must be there
        ("", []),
        ('"" ... "', []),
    ],
)
def test_what_is_found(query, found):
    assert spans(query) == found


def test_a_hit_has_the_video_the_text_and_a_score():
    first, second = search_speech(CAPTIONS, "bridges walk")
    assert (first.video, first.text) == (FILM, "We walked over the old bridge yesterday.")
    assert first.score == pytest.approx(1.0)
    assert 0 < second.score < 0.5
    assert search_speech(CAPTIONS, "bridges walk", 1) == [first]
    assert search_speech(CAPTIONS, "bridges walk", 0) == []


def test_a_rare_word_counts_more_than_a_frequent_one():
    captions = [Caption(10 * i, 10 * i + 1, "we talk of water") for i in range(20)]
    captions += [Caption(300, 301, "we talk of kayaks"), Caption(310, 311, "something else")]
    hits = search_speech({FILM: captions}, "water kayaks")
    assert hits[0].start == 300
    assert hits[0].score > 0.7
    # A word said everywhere makes no hits beside a rare one, though alone it does.
    assert spans("talk kayaks", {FILM: captions}) == [("film.mp4", 300, 301)]
    assert len(spans("talk", {FILM: captions}, 50)) == 21
    assert len(spans('kayaks "we talk"', {FILM: captions}, 50)) == 21


def test_captions_closer_than_two_seconds_are_one_hit_of_one_video():
    near = [Caption(0, 1, "red boat"), Caption(2.9, 4, "blue boat"), Caption(6, 7, "boat"), Caption(9.1, 10, "boat")]
    assert sorted(spans("boat", {FILM: near, TALK: near[:1]})) == [
        ("film.mp4", 0, 4),
        ("film.mp4", 6, 7),
        ("film.mp4", 9.1, 10),
        ("talk.mp4", 0, 1),
    ]


def test_a_phrase_goes_over_captions_that_are_close_and_of_one_video():
    assert spans('"old bridge"', {FILM: [Caption(0, 1, "the old"), Caption(2.9, 4, "bridge")]}) == [("film.mp4", 0, 4)]
    assert spans('"old bridge"', {FILM: [Caption(0, 1, "the old"), Caption(3.1, 4, "bridge")]}) == []
    assert spans('"old bridge"', {FILM: [Caption(0, 1, "the old")], TALK: [Caption(1, 2, "bridge")]}) == []


def test_captions_between_those_with_the_words_are_part_of_the_text():
    captions = [Caption(0, 1, "a boat"), Caption(1, 2.5, "or rather"), Caption(2.5, 3, "a ship")]
    assert [hit.text for hit in search_speech({FILM: captions}, "boat ship")] == ["a boat or rather a ship"]


def test_overlapping_and_unordered_captions_are_in_order_of_time():
    captions = [Caption(8, 9, "boat three"), Caption(0, 7, "boat one"), Caption(1, 2, "boat two")]
    assert [(hit.start, hit.end, hit.text) for hit in search_speech({FILM: captions}, "boat")] == [
        (0, 9, "boat one boat two boat three")
    ]


def test_a_hit_is_at_most_thirty_seconds_long():
    captions = [Caption(4 * i, 4 * i + 4, "boat") for i in range(50)] + [Caption(500, 700, "a boat for minutes")]
    found = sorted(spans("boat", {FILM: captions}, 100))
    assert [start for _, start, _ in found] == [*range(0, 200, 28), 500]
    assert max(end - start for _, start, end in found) <= MAX_HIT_SECONDS


def test_scores_are_above_zero_and_at_most_one():
    random_words = random.Random(0)
    vocabulary = ["boat", "ship", "red", "blue", "the", "sea"]
    captions = [Caption(3 * i, 3 * i + 1, " ".join(random_words.choices(vocabulary, k=4))) for i in range(200)]
    for query in ("boat", "boat ship red blue sea", '"red boat" ship', "boat unsaid"):
        scores = [hit.score for hit in search_speech({FILM: captions}, query, 500)]
        assert scores == sorted(scores, reverse=True)
        assert 0 < scores[-1] <= scores[0] <= 1


@pytest.mark.parametrize("seed", range(6))
def test_any_text_is_a_query(seed):
    characters = random.Random(seed)
    alphabet = string.punctuation + '"""' + " \0\n\ud800é漢🎬²" + "boat AND OR NOT NEAR "
    with SpeechIndex() as index:
        index.add(FILM, [Caption(0, 1, "boat AND ship"), Caption(1, 2, "near \0 漢 \N{COMBINING ACUTE ACCENT}")])
        for length in (1, 2, 3, 5, 8, 13, 100, 5000):
            for _ in range(20):
                index.search("".join(characters.choices(alphabet, k=length)))


@pytest.mark.parametrize(
    "query", ["boat AND", "NOT boat", "text:boat", "boat*", "^boat", "-boat", "boat + ship", "NEAR(boat, 2)", "{boat}:"]
)
def test_operators_are_words_or_punctuation(query):
    assert spans(query, {FILM: [Caption(0, 1, "a boat")]}) == [("film.mp4", 0, 1)]


def test_a_long_query_is_bounded():
    assert spans("boat " * 100_000, {FILM: [Caption(0, 1, "a boat")]}) == [("film.mp4", 0, 1)]
    assert spans('"' + "a-" * 100_000 + '"', {FILM: [Caption(0, 1, "a boat")]}) == []


def test_an_index_in_a_file_is_opened_again_and_changed(tmp_path):
    path = tmp_path / "speech.sqlite"
    with SpeechIndex(path) as index:
        for video, captions in CAPTIONS.items():
            index.add(video, captions)
    with SpeechIndex(path) as index:
        assert [hit.video for hit in index.search("cafe painter")] == [FILM, TALK]
        index.add(TALK, [Caption(1, 2, "a boat")])  # in place of what it had
        assert index.search("cafe") == []
        assert [hit.start for hit in index.search("boat")] == [1]
        index.remove(FILM)
        index.remove("none.mp4")
        assert index.search("painter") == []
    with sqlite3.connect(path) as database:
        assert database.execute('SELECT start, "end", text FROM captions').fetchall() == [(1.0, 2.0, "a boat")]
        database.execute("INSERT INTO captions_text (captions_text, rank) VALUES ('integrity-check', 1)")
    database.close()


def test_a_video_whose_captions_fail_keeps_those_it_has():
    def captions():
        yield Caption(0, 1, "a ship")
        raise OSError

    with SpeechIndex() as index:
        index.add(FILM, [Caption(0, 1, "a boat")])
        with pytest.raises(OSError):  # noqa: PT011 - any
            index.add(FILM, captions())
        assert len(index.search("boat")) == 1


def test_files_that_are_no_index_are_named(tmp_path):
    (tmp_path / "text").write_text("no database of any kind" * 100)
    with pytest.raises(
        SpeechIndexError, match=r"text: file is not a database; give another file; or, if it was a library"
    ):
        SpeechIndex(tmp_path / "text")
    with sqlite3.connect(tmp_path / "other") as database:
        database.execute("CREATE TABLE a (b)")
    database.close()
    with pytest.raises(SpeechIndexError, match="other: the database of another program; give another file"):
        SpeechIndex(tmp_path / "other")
    with pytest.raises(SpeechIndexError, match="none/index: unable to open database file"):
        SpeechIndex(tmp_path / "none/index")


def test_speech_is_searched_without_importing_a_model():
    code = (
        "import sys; from calce_jax.search.speech_index import search_speech;"
        "print([name for name in ('jax', 'transformers', 'flax', 'av') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]", result.stderr
