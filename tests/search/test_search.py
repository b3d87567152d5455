"""Search in videos: segments, ranking, the cache, the written results, and errors for bad input."""

import json
import os
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from calce_jax.inference.answers import Answer
from calce_jax.inference.predictor import Predictor
from calce_jax.models.vision_features import QFormerFeatures
from calce_jax.moments.annotations import Annotation
from calce_jax.moments.scoring import BeamHypothesis, QueryMoments, score_moments
from calce_jax.search import segment_answers
from calce_jax.search.captions import caption_with_cache
from calce_jax.search.inputs import check_queries, list_videos, load_captions
from calce_jax.search.load_searcher import open_stages
from calce_jax.search.paths import SearchError
from calce_jax.search.ranking import NMS_THRESHOLD, ScoredWindow, break_ties_jointly, select_moments
from calce_jax.search.results import (
    break_ties_across_videos,
    ensure_writable,
    ground_truth,
    rank_moments,
    write_results,
)
from calce_jax.search.searcher import EncodedSegment, EncodedVideo, Searcher
from calce_jax.search.segment_answers import SegmentAnswer, merge_answers
from calce_jax.search.segments import (
    Segment,
    SegmentFrames,
    SegmentSampling,
    read_segments,
    searchable_duration,
    segment_captions,
    split_into_segments,
)
from calce_jax.storage.disk_cache import OVERHEAD, DiskCache, make_cache_key
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption import Caption
from calce_jax.text.text_row import RowFlag
from calce_jax.text.tokenizers import load_t5
from calce_jax.video.clips import cut_clip, thumbnails_at
from calce_jax.video.decode import VideoError, decode_jpeg, frames_at, read_frames, video_duration
from tests.helpers.commands import run_script
from tests.helpers.search_stages import MAX_SEGMENT_SECONDS, make_stages
from tests.helpers.video_files import write_clip

QUERY = "a red circle moves to the left"
SRT = "1\n00:00:01,000 --> 00:00:02,000\nsaid in {} by {}\n"


@pytest.mark.parametrize(
    ("duration", "count"), [(0.4, 1), (150.0, 1), (150.02, 1), (160.0, 2), (300.0, 3), (7200.0, 95)]
)
def test_segments_cover_a_video_and_overlap_by_half(duration, count):
    segments = split_into_segments(duration, 150.0)
    assert len(segments) == count
    assert (segments[0].start, segments[-1].end) == (0.0, pytest.approx(duration))
    for segment, later in pairwise(segments):
        assert segment.duration == pytest.approx(150.0)
        assert later.start - segment.start <= 75.0 + 1e-9


def test_frames_at_times_are_those_on_the_screen(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=40, rate=10)
    heads = read_frames(video, 8, 32)
    np.testing.assert_array_equal(np.stack(list(frames_at(video, heads.times.tolist(), 32))), heads.frames)
    between = [second + 0.06 for second in heads.times.tolist()]
    np.testing.assert_array_equal(np.stack(list(frames_at(video, between, 32))), heads.frames)
    last = list(frames_at(video, [3.9, 60.0], 32))
    np.testing.assert_array_equal(last[0], last[1])


def test_a_long_video_is_read_by_segments_and_then_from_the_cache(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=50, rate=2)
    sampling, cache = SegmentSampling(max_seconds=10.0, num_frames=10, image_size=16), DiskCache(tmp_path / "cache")
    duration, segments, once = read_segments(video, file_hash(video), sampling, cache)
    first = list(once)
    assert duration == pytest.approx(25.0)
    assert [frames.segment for frames in first] == segments == split_into_segments(25.0, 10.0)
    for frames in first:
        np.testing.assert_allclose(frames.times, np.arange(10), atol=1e-3)
        index = np.floor((frames.segment.start + frames.times + 1e-3) * 2)
        shades = [decode_jpeg(jpeg).mean() for jpeg in frames.keyframes]
        np.testing.assert_allclose(shades, np.minimum(index * 8, 255), atol=6)

    os.truncate(video, 100)  # the video itself is not needed any more but for its length
    again = [cache.read_arrays("frames", path.name) for path in (tmp_path / "cache/frames").iterdir()]
    assert len(again) == len(segments)


def test_segments_that_the_cache_lost_are_decoded_again(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=50, rate=2)
    sampling, cache = SegmentSampling(max_seconds=10.0, num_frames=10, image_size=16), DiskCache(tmp_path / "cache")
    first = list(read_segments(video, "it", sampling, cache)[2])
    entries = sorted((tmp_path / "cache/frames").iterdir())
    entries[0].unlink()
    entries[1].write_bytes(b"cut off")
    for before, after in zip(first, read_segments(video, "it", sampling, cache)[2], strict=True):
        assert before.keyframes == after.keyframes
        np.testing.assert_array_equal(before.times, after.times)


def test_captions_are_clipped_to_a_segment():
    said = [Caption(0, 4, "before"), Caption(8, 12, "into"), Caption(13, 14, "in"), Caption(19, 30, "out of")]
    expected = [Caption(0.0, 2.0, "into"), Caption(3.0, 4.0, "in"), Caption(9.0, 10.0, "out of")]
    assert segment_captions(said, Segment(10.0, 20.0)) == expected


def test_the_cache_drops_what_was_not_used_for_longest(tmp_path):
    cache, size = DiskCache(tmp_path, max_bytes=1000), 400 + OVERHEAD
    for number, name in enumerate("ab"):
        cache.write("frames", name, bytes(400))
        os.utime(tmp_path / "frames" / name, (number, number))
    assert cache.read("frames", "a") == bytes(400)
    cache.write("features", "c", bytes(400))
    assert cache.read("frames", "b") is None
    assert cache.read("frames", "a") == bytes(400)
    assert cache.total_bytes() == 2 * size
    cache.write("features", "larger than all", bytes(2000))
    assert cache.total_bytes() == 2 * size


def test_a_cache_that_cannot_be_written_says_so_once_and_holds_nothing(tmp_path, caplog):
    (tmp_path / "taken").write_text("a file where the folder should be")
    cache = DiskCache(tmp_path / "taken")
    for name in "ab":
        cache.write("frames", name, b"x")
        assert cache.read("frames", name) is None
    assert caplog.text.count("nothing is cached") == 1


def test_keys_differ_with_what_they_are_made_from():
    assert (
        make_cache_key(content="x", size=56)
        == make_cache_key(size=56, content="x")
        != make_cache_key(content="x", size=224)
    )


def test_a_window_in_two_segments_is_one_moment_with_the_mean_score():
    segments = [Segment(0.0, 100.0), Segment(50.0, 150.0)]
    # 80 to 120 s; the first segment ends at 100 s, and the second one begins at 50 s.
    beams = [[BeamHypothesis([[80, 100]], 0.9), BeamHypothesis([[10, 20]], 0.1)], [BeamHypothesis([[30, 70]], 1.0)]]
    best, other = select_moments(segments, beams, max_moments=5)
    assert (best.start, best.end) == (80.0, 120.0)
    assert best.score == pytest.approx((0.9 + 1.0) / 2)
    assert (other.start, other.end, other.score) == (10.0, 20.0, pytest.approx(0.1))


def test_scores_decrease_strictly_and_moments_do_not_overlap_by_more_than_half():
    rng = np.random.default_rng(0)
    segments = split_into_segments(400.0, 100.0)
    beams = [
        [BeamHypothesis([sorted(map(float, rng.integers(0, 100, 2))) for _ in range(2)], 0.2) for _ in range(5)]
        for _ in segments
    ]
    beams = [
        [BeamHypothesis([[a, b + 1] for a, b in beam.windows], beam.probability) for beam in hypotheses]
        for hypotheses in beams
    ]
    found = select_moments(segments, beams, max_moments=20)
    assert len(found) > 5
    assert all(a.score > b.score for a, b in pairwise(found))
    for n, a in enumerate(found):
        for b in found[n + 1 :]:
            overlap = min(a.end, b.end) - max(a.start, b.start)
            assert overlap <= NMS_THRESHOLD * min(a.end - a.start, b.end - b.start) + 1e-9


def test_equal_scores_are_told_apart_across_videos():
    lists = [[ScoredWindow(0.0, 1.0, 1.0), ScoredWindow(4.0, 5.0, 0.25)], [ScoredWindow(0.0, 1.0, 1.0)], []]
    first, second, third = break_ties_jointly(lists)
    assert first[0].score > second[0].score > first[1].score
    assert third == []


@pytest.fixture(scope="module")
def compiled():
    """One searcher for all tests, so that its programs are compiled once."""
    return Searcher(make_stages(), DiskCache(""), MAX_SEGMENT_SECONDS)


def test_a_stage_that_was_trained_without_items_is_asked_without(compiled, monkeypatch):
    asked = []

    def predict(predictor, examples, features):
        asked.append([example.items for example in examples])
        return [Answer(example.qid, QueryMoments([], "", "empty"), [], {}, [], RowFlag(0)) for example in examples]

    monkeypatch.setattr(Predictor, "predict", predict)
    first = compiled.predictors["stage 1"]
    monkeypatch.setattr(first, "model", replace(first.model, trained_with_items=False))
    frames = SegmentFrames(Segment(0.0, 8.0), [b""], np.zeros(1, np.int32), np.zeros(1, np.float32), 1, 1.0)
    seen = QFormerFeatures(np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2, 2), np.float32))
    compiled._predict([(EncodedSegment(frames, dict.fromkeys(compiled.predictors, seen)), QUERY, [])])
    assert asked == [[[]], [["red circle"]]]


def test_captions_that_do_not_fit_are_named(compiled, monkeypatch):
    warnings, video = [], Path("talk.mp4")
    monkeypatch.setattr(segment_answers.logging, "warning", lambda text, *values: warnings.append(text % values))

    def predict(predictor, examples, features):
        flags = [RowFlag.CAPTIONS_DROPPED if len(example.captions) > 24 else RowFlag(0) for example in examples]
        return [Answer(n, QueryMoments([], "", "empty"), ["full"], {}, [], flag) for n, flag in enumerate(flags)]

    monkeypatch.setattr(Predictor, "predict", predict)
    seen = QFormerFeatures(np.zeros((1, 1, 2), np.float32), np.zeros((1, 1, 2, 2), np.float32))
    segments = [
        EncodedSegment(
            SegmentFrames(Segment(start, start + 8.0), [b""], np.zeros(1, np.int32), np.zeros(1, np.float32), 1, 1.0),
            dict.fromkeys(compiled.predictors, seen),
        )
        for start in (0.0, 60.0)
    ]
    captions = [Caption(60 + n / 5, 60.1 + n / 5, f"this is the old bridge of {n} towns") for n in range(30)]
    encoded = EncodedVideo(video, 68.0, 2, segments)
    compiled.search(encoded, [QUERY], captions[:24])
    assert warnings == []
    compiled.search(encoded, [QUERY], captions)
    assert warnings == [
        "talk.mp4: of its 30 captions from 01:00.0 to 01:08.0 those that share least with the query were left out, as "
        "too many"
    ]


def test_nothing_is_found_where_every_answer_is_that_it_does_not_happen():
    """A segment that says so adds no moment, and lowers the scores of those that it shares with another segment."""

    def merge(*texts_of_segments):
        answers = [
            SegmentAnswer(
                Segment(start, start + 100.0),
                np.zeros(1),
                [],
                {
                    "stage 2": Answer(
                        0, score_moments(texts, [-0.1, -0.9], 100, window_order="score"), ["full"], {}, [], RowFlag(0)
                    )
                },
            )
            for start, texts in zip((0.0, 50.0), texts_of_segments, strict=True)
        ]
        return merge_answers(QUERY, answers, 5, 150.0).moments

    nowhere, somewhere = ["[]", "[[3, 9]]"], ["[[70, 80]]", "[[70, 80]]"]
    assert merge(nowhere, nowhere) == []
    (alone,) = merge(somewhere, nowhere)
    assert (alone.start, alone.end, alone.score) == (70, 80, 0.5)
    assert merge(somewhere, ["[[20, 30]]", "[[20, 30]]"])[0].score == 1.0


@pytest.fixture
def searcher(compiled, tmp_path, monkeypatch):
    """A searcher whose answers are replaced by windows: its weights are random, and generate none."""

    def text(_, ids):
        start = int(np.sum(ids)) % 7
        return f"[[0, 1], [{start}, {start + 2}]]"

    monkeypatch.setattr("calce_jax.inference.answers.decode_answer", text)
    compiled.cache = DiskCache(tmp_path / "cache")
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1, 8, 33])
def test_videos_of_any_length_are_searched(searcher, tmp_path, seconds):
    video = write_clip(tmp_path / "a.mp4", frames=seconds * 5, rate=5)
    result = searcher.search(video, [QUERY, "someone talks about a museum"], [Caption(0, 1, "a museum")])
    assert result.duration == pytest.approx(seconds)
    for found in result.query_results:
        assert found.moments
        assert all(0 <= m.start < m.end <= seconds + 1e-6 for m in found.moments)
        assert all(a.score > b.score for a, b in pairwise(found.moments))
        assert all(0 < m.score <= 1 for m in found.moments)
        assert len(found.frames) >= min(seconds, 10)


@pytest.mark.slow
@pytest.mark.release
def test_a_constrained_model_writes_windows_of_the_segment_whatever_its_weights(tmp_path, monkeypatch):
    stages = [
        replace(stage, config=replace(stage.config, generation=replace(stage.config.generation, constrain=True)))
        for stage in make_stages()
    ]
    predict, texts = Predictor.predict, []

    def spy(predictor, examples, features):
        answers = predict(predictor, examples, features)
        texts.extend(answer.moments.text for answer in answers)
        return answers

    monkeypatch.setattr(Predictor, "predict", spy)
    video = write_clip(tmp_path / "a.mp4", frames=40, rate=5)
    Searcher(stages, DiskCache(tmp_path / "cache"), MAX_SEGMENT_SECONDS).search(video, [QUERY, "a dog"])
    assert len(texts) == 4
    for text in texts:
        assert text == "[]" or re.match(r"\[\[\d, \d\]", text), text
        assert all(0 <= int(start) < int(end) <= 8 for start, end in re.findall(r"\[(\d+), (\d+)\]", text)), text


@pytest.mark.slow
def test_a_second_query_reuses_frames_and_features(searcher, tmp_path, monkeypatch):
    video = write_clip(tmp_path / "a.mp4", frames=100, rate=5)
    first = searcher.search(video, [QUERY])
    monkeypatch.setattr(Predictor, "encode_video", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr("calce_jax.search.segments.frames_at", lambda *_: pytest.fail("decoded again"))
    assert searcher.search(video, [QUERY]) == first
    searcher.search(video, ["someone talks about a museum"])


@pytest.mark.slow
def test_results_are_written_and_the_folder_can_be_moved(searcher, tmp_path):
    videos = [write_clip(tmp_path / n / "a&b.mp4", frames=40, rate=5, sound=True) for n in ("x", "y")]
    searched = break_ties_across_videos([searcher.search(video, [QUERY]) for video in videos])
    truth = ground_truth(
        [Annotation("1", "a&b", QUERY, [], 8.0, [[1, 2], [7, 9]]), Annotation("2", "b", QUERY, [], 8.0, [[0, 1]])]
    )
    write_results(tmp_path / "out", searched, max_moments=3, clips=True, truth=truth)
    entries = json.loads((tmp_path / "out/moments.json").read_text())
    assert [entry["video"] for entry in entries] == list(map(str, videos))
    scores = []
    for entry in entries:
        (query,) = entry["queries"]
        assert query.keys() == {"query", "moments", "captions", "frames"}
        for moment in query["moments"]:
            assert video_duration(tmp_path / "out" / moment["clip"]) == pytest.approx(
                moment["end"] - moment["start"], abs=0.3
            )
            scores.append(moment["score"])
    assert len(set(scores)) == len(scores)
    rows = rank_moments(searched, 3)
    assert [row.position for row in rows] == [1, 2, 3][: len(rows)]
    assert all(a.moment.score > b.moment.score for a, b in pairwise(rows))
    page = (tmp_path / "out/index.html").read_text()
    assert page.count('<article class="video"') == 2
    assert (
        page.count("true moment, 00:01.0 to 00:02.0") == page.count("true moment, 00:07.0 to 00:08.0") == 4
    )  # title and label
    assert "http" not in page
    for name in ("a_b.mp4", "a_b_2.mp4"):
        assert f'data-address="videos/{name}"' in page
        assert (tmp_path / "out/videos" / name).read_bytes() == videos[0].read_bytes()


def test_a_clip_has_the_frames_between_its_times_and_sound(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=30, rate=10, sound=True)
    cut_clip(video, 0.5, 1.5, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        shades = [frame.to_ndarray(format="rgb24").mean() for frame in clip.decode(video=0)]
        assert [stream.type for stream in clip.streams] == ["video", "audio"]
    np.testing.assert_allclose(shades, np.arange(5, 15) * 8, atol=6)


def test_a_turned_video_gives_upright_pictures_and_clips(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=10, rate=10, size=(64, 32), rotation=90, white_quarter=True)
    upright = decode_jpeg(thumbnails_at(video, [0.0], 64)[0])
    assert upright.shape == (64, 32, 3)
    cut_clip(video, 0.0, 0.5, tmp_path / "clip.mp4")
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert (clip.streams.video[0].width, clip.streams.video[0].height) == (32, 64)


def test_pictures_are_those_of_their_times_wherever_key_frames_are(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=32, rate=1)
    shades = [decode_jpeg(jpeg).mean() for jpeg in thumbnails_at(video, [0.0, 2.5, 14.0, 31.0])]
    np.testing.assert_allclose(shades, [0, 16, 112, 248], atol=6)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("", "query 1 is empty"),
        ("   ", "query 1 is empty"),
        (" ".join(["word"] * 5000), "query 1 has 5,000 words; use at most 60"),
        ("a." * 5000, "query 1 has 10,000 characters; use at most 1,000"),
        ("🎉🎉", "has no word that the model knows"),
        ("他在做饭", "has no word that the model knows; write it in English"),
    ],
)
def test_bad_queries_are_refused(query, message):
    t5 = load_t5(Path(__file__).parents[2] / "calce_jax/assets/tiny/t5")
    with pytest.raises(SearchError, match=message):
        check_queries([query], t5)
    check_queries(["a red circle 🎉 moves"], t5)
    with pytest.raises(SearchError, match="no query"):
        check_queries([], t5)


def test_a_video_of_ten_hours_is_refused(tmp_path):
    video = write_clip(tmp_path / "long.mp4", frames=2, rate=1, ticks=[0, 36_000])
    with pytest.raises(VideoError, match=r"long\.mp4: it lasts 10\.0 hours, the maximum is 4; cut it"):
        searchable_duration(video)


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_searched(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write into .*file"):
        ensure_writable(tmp_path / "file")
    with pytest.raises(OSError, match=r"cannot write into .*inner"):
        ensure_writable(tmp_path / "file" / "inner")
    with pytest.raises(OSError, match=r"cannot write into .*long"):
        ensure_writable(tmp_path / "new" / ("long" * 100))
    assert not (tmp_path / "new").exists()


def test_a_folder_that_can_be_written_is_created_with_the_first_result_alone(tmp_path):
    assert ensure_writable(tmp_path / "new" / "found") == tmp_path / "new" / "found"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "new").mkdir()
    ensure_writable(tmp_path / "new" / "found")
    ensure_writable(tmp_path / "new")
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]


def test_captions_come_from_where_they_are_said_to(tmp_path):
    video, srt = tmp_path / "a.mp4", tmp_path / "a.srt"
    assert load_captions(video, "auto") == []
    srt.write_text("1\n00:00:01,000 --> 00:00:02,000\nhello\n")
    said = [Caption(1.0, 2.0, "hello")]
    assert load_captions(video, "auto") == load_captions(video, srt) == load_captions(video, tmp_path) == said
    assert load_captions(video, "none") == []
    with pytest.raises(FileNotFoundError):
        load_captions(video, tmp_path / "gone.srt")


def test_whisper_says_where_it_does_nothing(tmp_path, caplog):
    video = tmp_path / "a.mp4"
    video.with_suffix(".srt").touch()
    assert caption_with_cache([video], tmp_path / "out", "tiny", DiskCache(tmp_path / "cache")) == {}
    assert [record.getMessage() for record in caplog.records] == [
        f"{video}: --whisper does nothing, since there are captions beside it or in it"
    ]


def test_captions_are_cached_by_content_and_not_by_name(tmp_path, monkeypatch):
    asked = []

    def caption(videos, folder, whisper, options, notice):
        found = {video: Path(folder) / f"{video.stem}.srt" for video in videos}
        for video, srt in found.items():
            if not srt.exists():
                asked.append(video)
                srt.parent.mkdir(exist_ok=True)
                srt.write_text(SRT.format(video.read_text(), whisper))
        return found

    monkeypatch.setattr("calce_jax.search.captions.caption_without_srt", caption)
    cache, out = DiskCache(tmp_path / "cache"), tmp_path / "out"
    first, same, other = (tmp_path / folder / "a.mp4" for folder in ("x", "y", "z"))
    for video, content in ((first, "1"), (same, "1"), (other, "2")):
        video.parent.mkdir()
        video.write_text(content)
    for video in (first, same, other, first):
        assert caption_with_cache([video], out, "tiny", cache)[video].read_text() == SRT.format(
            video.read_text(), "tiny"
        )
    assert asked == [first, other]
    with pytest.raises(SearchError, match="same file name"):
        caption_with_cache([first, other], out, "tiny", cache)
    first.with_suffix(".srt").touch()
    assert caption_with_cache([first], out, "tiny", cache) == {}


def test_folders_are_looked_through_for_videos(tmp_path):
    for name in ("b/2.MKV", "a/1.mp4", "a/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert list_videos([tmp_path, tmp_path / "a/1.mp4"]) == [tmp_path / "a/1.mp4", tmp_path / "b/2.MKV"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SearchError, match=r"no video among .*empty; file names of videos end in \.mp4"):
        list_videos([tmp_path / "empty"])


@pytest.mark.slow
def test_a_broken_video_is_reported_in_a_line_and_the_others_are_searched(searcher, tmp_path, monkeypatch, capsys):
    whole = write_clip(tmp_path / "videos/b.mp4", frames=20, rate=5)
    (tmp_path / "videos/a.mp4").write_text("a text file")
    with av.open(str(tmp_path / "videos/c.mp4"), "w") as container:
        voice = container.add_stream("aac", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        silence.rate = 8000
        container.mux([*voice.encode(silence), *voice.encode(None)])
    write_clip(tmp_path / "videos/d.mp4", frames=2, rate=1, ticks=[0, 36_000])
    monkeypatch.setattr("calce_jax.search.load_searcher.load_searcher", lambda *_, **__: searcher)
    monkeypatch.setattr("calce_jax.search.load_searcher.enable_compilation_cache", lambda _: None)
    run_script("search", tmp_path / "videos", f"--query={QUERY}", f"--out={tmp_path / 'out'}")
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if "Error" in line]
    assert len(errors) == 3
    assert errors[0].startswith(f"Error: {tmp_path}/videos/a.mp4: it is not a video")
    assert "c.mp4: it holds sound and no picture" in errors[1]
    assert "d.mp4: it lasts 10.0 hours" in errors[2]
    assert "b.mp4" in printed.out
    (entry,) = json.loads((tmp_path / "out/moments.json").read_text())
    assert entry["video"] == str(whole)


def test_a_folder_without_runs_is_named(tmp_path):
    with pytest.raises(SearchError, match=r"stage1 and .*stage2"):
        open_stages(tmp_path)
