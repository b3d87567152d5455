"""The segments of a library that a model is asked about: vectors on disk, two rankings, batches across videos."""

import itertools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from calce_jax.models.segment_ranker import init_segment_ranker
from calce_jax.search import segment_index
from calce_jax.search.library import Library, LibraryError
from calce_jax.search.picture_ranker import PictureRanker
from calce_jax.search.searcher import Searcher
from calce_jax.search.segment_index import SegmentVectors
from calce_jax.search.segments import ChosenSegments, Segment
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.failures import Failure
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption import Caption
from calce_jax.video.decode import VideoError
from tests.helpers.search_stages import MAX_SEGMENT_SECONDS, make_stages
from tests.helpers.video_files import write_clip

SRT = "1\n00:00:01,000 --> 00:00:02,500\n{}\n"
NAMES = ("one", "two", "three")


class OneVector:
    """Makes two segments of a video, of which the second shows what its name says: axis 0, 1 or 2."""

    def __init__(self):
        self.embedded = []

    def __call__(self, videos):
        for video in videos:
            self.embedded.append(video.name)
            if video.name == "broken.mp4":
                yield (
                    video,
                    Failure.of(str(video), VideoError(video, "no frame of it can be decoded", "fetch it again")),
                )
                continue
            noise = np.full((2, 3), 0.1, np.float16)
            shown = noise.copy()
            shown[1, NAMES.index(video.stem)] = 0.9
            yield video, [SegmentVectors(Segment(0.0, 3.0), noise), SegmentVectors(Segment(2.0, 5.0), shown)]


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number, name in enumerate(NAMES):
        write_clip(folder / f"{name}.mp4", frames=50 + number, rate=10)
    (folder / "two.srt").write_text(SRT.format("we look at the river"))
    return folder


@pytest.fixture
def library(tmp_path, videos):
    with Library(tmp_path / "library.sqlite", create=True) as library:
        library.index([videos])
        yield library


def chosen(library, query, axis, count):
    vectors = np.eye(3, dtype=np.float32)[[axis]]
    return [(of.video.name, sorted(of.starts[0])) for of in library.choose_segments([query], vectors, "ranker", count)]


def test_only_videos_without_vectors_are_embedded(library, videos):
    embedder = OneVector()
    assert library.index_pictures("ranker", embedder).added == 3
    (videos / "one.mp4").rename(videos / "renamed.mp4")
    shutil.copy(videos / "two.mp4", videos / "copy.mp4")
    library.index([videos])
    embedder.embedded.clear()
    assert library.index_pictures("ranker", embedder).added == 0
    assert embedder.embedded == []
    assert library.num_with_pictures("ranker") == 4
    # Another model's vectors are others.
    assert library.num_with_pictures("other") == 0
    (videos / "renamed.mp4").rename(videos / "one.mp4")
    (videos / "copy.mp4").unlink()
    library.index([videos])
    assert library.index_pictures("other", OneVector()).added == 3


def test_the_best_segments_by_picture(library):
    library.index_pictures("ranker", OneVector())
    assert chosen(library, "?", 2, 1) == [("three.mp4", [2.0])]
    assert chosen(library, "?", 0, 1) == [("one.mp4", [2.0])]
    assert sum(len(starts) for _, starts in chosen(library, "?", 0, 6)) == 6
    vectors = np.eye(3, dtype=np.float32)[[0, 2]]
    both = library.choose_segments(["?", "?"], vectors, "ranker", 1)
    assert [(of.video.name, of.starts) for of in both] == [("one.mp4", [{2.0}, set()]), ("three.mp4", [set(), {2.0}])]


def test_words_that_are_said_count_as_much_as_pictures(library):
    library.index_pictures("ranker", OneVector())
    # The words are said from 1.0 to 2.5 s: in both segments of two.mp4.
    found = chosen(library, "the river", 0, 4)
    assert ("two.mp4", [0.0, 2.0]) in found
    assert any(name == "one.mp4" and 2.0 in starts for name, starts in found)
    (of_two,) = [of for of in library.choose_segments(["river"], np.eye(3, dtype=np.float32)[[1]], "ranker", 1)]
    assert of_two.captions == [Caption(1.0, 2.5, "we look at the river")]
    assert of_two.content == file_hash(of_two.video)


def test_what_is_gone_or_changed_is_not_asked(library, videos):
    library.index_pictures("ranker", OneVector())
    (videos / "three.mp4").unlink()
    assert chosen(library, "?", 2, 1) == []
    library.index([videos])
    assert library.num_with_pictures("ranker") == 2
    write_clip(videos / "one.mp4", frames=70, rate=10)
    library.index([videos])
    assert library.num_with_pictures("ranker") == 1
    assert library.index_pictures("ranker", OneVector()).added == 1
    rows = library._database.execute("SELECT count(DISTINCT content) FROM segments").fetchone()
    assert rows == (2,)


def test_a_video_that_fails_is_reported_and_an_interruption_loses_nothing(library, videos, tmp_path):
    write_clip(videos / "broken.mp4", frames=30, rate=10)
    library.index([videos])
    result = library.index_pictures("ranker", OneVector())
    assert result.added == 3
    assert [(Path(f.video).name, f.reason) for f in result.failures] == [
        ("broken.mp4", "no frame of it can be decoded")
    ]

    def interrupted(videos):
        yield from itertools.islice(OneVector()(videos), 1)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.index_pictures("half", interrupted)
    assert library.num_with_pictures("half") == 1


def test_blocks_change_nothing(library, monkeypatch):
    rng = np.random.default_rng(0)
    vectors = {f"{n:02}": rng.normal(size=(1 + n % 3, 8)).astype(np.float16) for n in range(11)}
    for content, of in vectors.items():
        segment_index.add_segments(library._database, content, "r", [SegmentVectors(Segment(0.0, 1.0), of)])
    queries = rng.normal(size=(2, 8)).astype(np.float32)
    expected = [
        sorted(vectors, key=lambda content: -(vectors[content].astype(np.float32) @ query).max())[:5]
        for query in queries
    ]
    for size in (512, 1, 4):
        monkeypatch.setattr(segment_index, "SEGMENTS_PER_BLOCK", size)
        found = segment_index.best_segments(library._database, "r", queries, 5)
        assert [[segment.content for segment in of] for of in found] == expected


def test_damaged_vectors_are_an_error_of_the_library(library):
    library.index_pictures("ranker", OneVector())
    with library._database as database:
        database.execute("UPDATE segments SET vectors = substr(vectors, 1, 7)")
    with pytest.raises(LibraryError, match=r"library.sqlite.*remove the file, and index anew"):
        chosen(library, "?", 0, 1)


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> Searcher:
    return Searcher(make_stages(), DiskCache(tmp_path_factory.mktemp("cache")), MAX_SEGMENT_SECONDS)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{n}.mp4", frames=frames, rate=5) for n, frames in enumerate((40, 20, 300))]


def ask(video: Path, starts, captions=()) -> ChosenSegments:
    return ChosenSegments(video, file_hash(video), captions, starts)


@pytest.mark.release
def test_all_segments_of_videos_give_what_each_video_gives(searcher, clips):
    """Batches go across videos; the answers do not depend on that."""
    queries = ["a red circle moves to the left", "someone talks about a river"]
    spoken = [Caption(1.0, 3.0, "a river")]
    starts = [{segment.frames.segment.start for segment in searcher.encode(clip).segments} for clip in clips]
    assert [len(of) for of in starts][2] > 1
    results, failures = searcher.search_segments(
        [ask(clip, [of, of], spoken) for clip, of in zip(clips, starts, strict=True)], queries
    )
    assert not failures
    assert results == [searcher.search(clip, queries, spoken) for clip in clips]


@pytest.mark.slow
def test_only_the_chosen_segments_are_asked(searcher, clips):
    starts = sorted(segment.frames.segment.start for segment in searcher.encode(clips[2]).segments)
    (result,), _ = searcher.search_segments([ask(clips[2], [{starts[-1]}, set()])], ["a red circle", "a blue square"])
    asked, other = result.query_results
    assert min(second for second, _ in asked.frames) >= starts[-1]
    assert (other.query, other.moments, other.frames) == ("a blue square", [], [])
    assert list(other.stages) == list(asked.stages)


def test_a_broken_video_does_not_stop_the_others(searcher, clips, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    results, failures = searcher.search_segments(
        [ask(clips[0], [{0.0}]), ask(broken, [{0.0}]), ask(clips[1], [{0.0}])], ["a red circle"]
    )
    assert [result.video for result in results] == [clips[0], clips[1]]
    assert [Path(failure.video).name for failure in failures] == ["broken.mp4"]


def test_a_video_that_cannot_be_read_has_no_vectors(searcher, clips, tmp_path):
    config = searcher.predictors["stage 2"].model.model_config
    layers = init_segment_ranker(config.qformer.width, config.t5.width, jax.random.key(0))
    broken = tmp_path / "broken.mp4"
    broken.write_text("no video")
    videos = {path: file_hash(path) for path in (clips[0], broken, clips[1])}
    found = dict(PictureRanker(searcher, layers, "layers").embed_videos(videos))
    assert [len(found[clip]) for clip in clips[:2]] == [len(list(searcher.encode(clip).segments)) for clip in clips[:2]]
    assert isinstance(found[broken], Failure)
    assert "not a video" in found[broken].reason


def test_vectors_of_a_video_are_those_of_its_segments(searcher, clips):
    config = searcher.predictors["stage 2"].model.model_config
    layers = init_segment_ranker(config.qformer.width, config.t5.width, jax.random.key(0))
    ranker = PictureRanker(searcher, layers, "layers")
    segments = list(ranker.embed_video(clips[2], file_hash(clips[2])))
    assert [part.segment for part in segments] == [part.frames.segment for part in searcher.encode(clips[2]).segments]
    norms = np.concatenate([np.linalg.norm(part.vectors.astype(np.float32), axis=1) for part in segments])
    np.testing.assert_allclose(norms, 1.0, atol=2e-3)
    assert ranker.embed_queries(["a circle", "a red circle"]).shape == (2, segments[0].vectors.shape[1])
    assert PictureRanker(searcher, layers, "others").key != ranker.key
