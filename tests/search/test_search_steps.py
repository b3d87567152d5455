"""The steps of `calce search`: captions, modes, one list over all videos; videos that fail are left out."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from calce_jax.search.merging import merge_results
from calce_jax.search.modes import search_videos
from calce_jax.search.paths import SearchError
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.reporter import Reporter
from calce_jax.search.selection import check_selection, select_videos
from calce_jax.search.video_captions import read_video_captions
from calce_jax.search.video_result import QueryResult, VideoResult
from calce_jax.search.words import add_words
from calce_jax.text.caption import Caption

ONE, TWO = Path("one.mp4"), Path("two.mp4")
DURATIONS = {ONE: 20.0, TWO: 10.0}
CAPTIONS = {ONE: [Caption(1.0, 3.0, "that river")], TWO: []}


@pytest.fixture
def told():
    """The texts that a reporter gets, as ("error" or "notice", text)."""
    return []


@pytest.fixture
def reporter(told):
    return Reporter(lambda text: told.append(("error", text)), lambda text: told.append(("notice", text)))


def result(video, *scores, query="A dog."):
    windows = [ScoredWindow(float(n), n + 1.0, score) for n, score in enumerate(scores)]
    return VideoResult(video, DURATIONS[video], [QueryResult(query, {"stage 1": [], "stage 2": windows}, [], [], [])])


def fail(error):
    raise error


def test_an_attempt_that_fails_is_reported_in_one_line(reporter, told):
    assert reporter.attempt(int, "3") == 3
    assert reporter.attempt(fail, OSError("two\nlines")) is None
    assert told == [("error", "two?lines")]
    with pytest.raises(SearchError):
        reporter.attempt(fail, SearchError("nothing can be searched"))


def test_moments_of_all_videos_are_one_list():
    moments = merge_results([result(ONE, 0.5, 0.2), result(TWO, 0.5, 0.1)], ["A dog."], max_moments=3)
    assert [(moment.video, moment.position) for moment in moments] == [(ONE, 1), (TWO, 2), (ONE, 3)]
    assert moments[0].score > moments[1].score
    assert [len(r.query_results[0].moments) for r in moments.results] == [2, 2]


def test_moments_with_a_low_score_are_left_out():
    moments = merge_results([result(ONE, 0.5, 0.2)], ["A dog."], max_moments=3, min_score=0.4)
    assert [moment.score for moment in moments] == [pytest.approx(0.5, abs=1e-3)]
    assert moments.min_score == 0.4


def test_a_list_without_results_has_the_queries():
    moments = merge_results([], ["A dog."], max_moments=3)
    assert (list(moments), moments.queries, moments.results) == ([], ["A dog."], [])


def search(reporter, mode, searcher=None, captions=CAPTIONS):
    return search_videos(
        captions,
        DURATIONS,
        ["river"],
        5,
        mode=mode,
        open_searcher=lambda: searcher or fail(AssertionError("no model is needed")),
        reporter=reporter,
    )


def make_searcher():
    def search(video, queries, captions, *, max_moments):
        assert (queries, max_moments, captions) == (["river"], 5, CAPTIONS[video])
        return result(video, 0.5, query="river") if video == ONE else fail(ValueError("it is damaged"))

    return SimpleNamespace(notice="The tiny model.", threshold=0.5, search=search)


def test_speech_is_searched_without_the_model(reporter, told):
    found = search(reporter, "speech")
    assert [[len(q.moments) for q in r.query_results] for r in found.results] == [[1], [0]]
    assert found.notice == ""
    assert told == [("notice", "two.mp4: it has no captions; --whisper=small.en makes them")]


def test_a_video_on_which_the_model_fails_is_left_out(reporter, told):
    found = search(reporter, "picture", make_searcher())
    assert ([r.video for r in found.results], found.notice) == ([ONE], "The tiny model.")
    hint = "Words that are said are found in any video with --mode=speech."
    assert told == [("notice", f"The tiny model. {hint}"), ("error", "it is damaged")]


def test_both_modes_are_one_after_the_other(reporter, told):
    found = search(reporter, "both", make_searcher())
    (video,) = found.results
    assert [(q.query, len(q.moments)) for q in video.query_results] == [("river", 1), ("river (in words)", 1)]
    assert told[0] == ("notice", "The tiny model.")


def test_a_sentence_that_ends_like_the_words_of_another_is_kept_apart():
    queries = ["river", "river (in words)"]
    pictures, words = (
        VideoResult(ONE, 20.0, [result(ONE, score, query=query).query_results[0] for query in queries])
        for score in (0.5, 0.6)
    )
    (both,) = add_words([pictures], [words])
    names = [query.query for query in both.query_results]
    assert names == [*queries, "river (in words, 2)", "river (in words) (in words, 2)"]
    assert [query.moments[0].score for query in both.query_results] == [0.5, 0.5, 0.6, 0.6]


def test_a_search_of_no_video_is_an_error(reporter):
    with pytest.raises(SearchError, match="no video could be searched"):
        search(reporter, "speech", captions={})
    with pytest.raises(SearchError, match="no video could be searched"):
        search(reporter, "both", make_searcher(), captions={TWO: []})


def test_captions_that_cannot_be_read_leave_the_video_out(reporter, told, tmp_path):
    good, bad = tmp_path / "good.srt", tmp_path / "bad.srt"
    good.write_text("1\n00:00:01,000 --> 00:00:02,000\na river\n")
    captions = read_video_captions({ONE: 10.0, TWO: 10.0}, "none", reporter, lambda videos: {ONE: good, TWO: bad})
    assert {video: [c.text for c in texts] for video, texts in captions.items()} == {ONE: ["a river"]}
    assert [kind for kind, _ in told] == ["error"]
    assert read_video_captions({ONE: 10.0, TWO: 10.0}, "none", reporter) == {ONE: [], TWO: []}


def test_videos_that_are_none_are_reported(reporter, told, tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    videos = select_videos([str(tmp_path)], None)
    assert videos == [tmp_path / "a.mp4"]
    with pytest.raises(SearchError, match=f"none of {tmp_path} can be searched"):
        check_selection(videos, [str(tmp_path)], reporter)
    assert [kind for kind, _ in told] == ["error"]
