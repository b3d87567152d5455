"""What a search writes: complete whatever fails for one video, the same when run again, under names that fit."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from calce_jax.search.inputs import list_videos, load_captions
from calce_jax.search.ranking import ScoredWindow
from calce_jax.search.results import write_results
from calce_jax.search.thumbnails import NUM_THUMBNAILS
from calce_jax.search.video_result import QueryResult, VideoResult
from calce_jax.storage.disk_cache import DiskCache
from calce_jax.storage.provenance import file_hash
from calce_jax.text.caption import Caption
from calce_jax.video.decode import VideoError
from tests.helpers.video_files import write_clip

SRT = "1\n00:00:01,000 --> 00:00:02,000\n{}\n"
LONG_NAME = "動" * 83  # 249 bytes; with ".mp4" 253


def found(video: Path, *windows: tuple[float, float]) -> VideoResult:
    moments = [ScoredWindow(start, end, 0.9 - n / 10) for n, (start, end) in enumerate(windows or [(0.0, 1.0)])]
    return VideoResult(video, 4.0, [QueryResult("a red circle", {"stage 2": moments}, [], [(0.0, "full")], [])])


def moments_in(out: Path) -> dict[str, list[str | None]]:
    """Return the clips of moments.json by the name of the video."""
    entries = json.loads((out / "moments.json").read_text())
    return {
        Path(entry["video"]).name: [m.get("clip") for q in entry["queries"] for m in q["moments"]] for entry in entries
    }


def test_a_clip_that_cannot_be_made_costs_that_clip_alone(tmp_path, monkeypatch):
    videos = [write_clip(tmp_path / f"{name}.mp4", frames=20, rate=5) for name in "ab"]

    def cut(video, start, end, out):
        if video == videos[0] and start == 0:
            raise VideoError(video, "its pictures are odd", "re-encode it")
        Path(out).parent.mkdir(exist_ok=True)
        Path(out).touch()

    monkeypatch.setattr("calce_jax.search.results.cut_clip", cut)
    results = [found(video, (0.0, 1.0), (1.0, 2.0)) for video in videos]
    (failure,) = write_results(tmp_path / "out", results, max_moments=3, clips=True)
    assert (failure.video, failure.reason) == (str(videos[0]), "its pictures are odd")
    assert moments_in(tmp_path / "out") == {
        "a.mp4": [None, "clips/a_00-00-01_a-red-circle.mp4"],
        "b.mp4": ["clips/b_00-00-00_a-red-circle.mp4", "clips/b_00-00-01_a-red-circle.mp4"],
    }
    page = (tmp_path / "out/index.html").read_text()
    assert page.count('<article class="video"') == 2


def test_a_video_without_thumbnails_is_on_the_page(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=20, rate=5)
    broken = tmp_path / "b.mp4"
    broken.write_text("no longer a video")
    (failure,) = write_results(tmp_path / "out", [found(video), found(broken)], max_moments=3)
    assert failure.video == str(broken)
    assert failure.reason.startswith("it is not a video")
    assert set(moments_in(tmp_path / "out")) == {"a.mp4", "b.mp4"}
    assert 'data-address="videos/b.mp4"' in (tmp_path / "out/index.html").read_text()


def test_a_video_that_has_gone_is_told_and_the_others_are_on_the_page(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=20, rate=5)
    failures = write_results(tmp_path / "out", [found(tmp_path / "gone.mp4"), found(video)], max_moments=3)
    assert "gone.mp4" in failures[0].reason
    assert set(moments_in(tmp_path / "out")) == {"gone.mp4", "a.mp4"}
    assert 'data-address="videos/a.mp4"' in (tmp_path / "out/index.html").read_text()


def test_a_disk_that_is_full_after_the_moments_leaves_them(tmp_path, monkeypatch):
    video = write_clip(tmp_path / "a.mp4", frames=20, rate=5)
    replace = os.replace

    def full(source, target):
        if Path(target).name != "moments.json":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr("os.replace", full)
    failures = write_results(tmp_path / "out", [found(video)], max_moments=3, clips=True)
    assert len(failures) == 2
    assert all("No space left on device" in failure.reason for failure in failures)
    assert moments_in(tmp_path / "out") == {"a.mp4": [None]}


def test_long_names_fit_with_all_that_is_appended(tmp_path):
    videos = [write_clip(tmp_path / n / f"{LONG_NAME}.mp4", frames=20, rate=5) for n in ("x", "y")]
    for video in videos:
        video.with_suffix(".srt").write_text(SRT.format("hello"))
        assert load_captions(video, "auto") == [Caption(1.0, 2.0, "hello")]
    assert not write_results(tmp_path / "out", [found(video) for video in videos], max_moments=3, clips=True)
    assert len(list((tmp_path / "out/videos").iterdir())) == len(list((tmp_path / "out/clips").iterdir())) == 2


@pytest.mark.parametrize("out", ["films", "films/found"])
def test_a_search_does_not_find_what_it_has_written(tmp_path, out):
    videos = [write_clip(tmp_path / "films" / name, frames=20, rate=5) for name in ("a.mp4", "b.mp4")]
    for _ in range(2):
        listed = list_videos([tmp_path / "films"], tmp_path / out)
        assert listed == videos
        write_results(tmp_path / out, [found(video) for video in listed], max_moments=3, clips=True)
    assert list_videos([tmp_path / "films"], tmp_path / "elsewhere") == videos
    # A folder of this name that no search has written is searched.
    mine = write_clip(tmp_path / "films/mine/videos.mp4", frames=2, rate=1)
    (tmp_path / "films/mine/videos").mkdir()
    mine = mine.rename(tmp_path / "films/mine/videos/c.mp4")
    assert list_videos([tmp_path / "films"], tmp_path / "elsewhere") == [*videos, mine]


@pytest.mark.parametrize("name", ["film.SRT", "film.en.srt", "film.pt-BR.srt", "film.English.srt", "film.en.sdh.srt"])
def test_captions_in_any_case_and_in_one_language_are_found(tmp_path, name):
    (tmp_path / name).write_text(SRT.format("hello"))
    (tmp_path / "film.part2.srt").write_text(SRT.format("of another video"))
    assert load_captions(tmp_path / "film.mp4", "auto") == [Caption(1.0, 2.0, "hello")]
    assert load_captions(tmp_path / "elsewhere/film.mp4", tmp_path) == [Caption(1.0, 2.0, "hello")]


def test_captions_in_several_languages_are_told(tmp_path, caplog):
    for language in ("en", "de"):
        (tmp_path / f"film.{language}.srt").write_text(SRT.format(language))
    assert load_captions(tmp_path / "film.mp4", "auto") == []
    assert "film.de.srt, film.en.srt; choose with --language" in caplog.text
    (tmp_path / "film.srt").write_text(SRT.format("mine"))
    assert load_captions(tmp_path / "film.mp4", "auto") == [Caption(1.0, 2.0, "mine")]


def test_thumbnails_are_made_once(tmp_path, monkeypatch):
    video = write_clip(tmp_path / "a.mp4", frames=20, rate=5)
    result, cache = replace(found(video), content=file_hash(video)), DiskCache(tmp_path / "cache")
    assert not write_results(tmp_path / "first", [result], max_moments=3, cache=cache)
    monkeypatch.setattr("calce_jax.search.thumbnails.thumbnails_at", None)
    assert not write_results(tmp_path / "later", [result], max_moments=3, cache=cache)
    pages = [(tmp_path / out / "index.html").read_text() for out in ("first", "later")]
    assert pages[0] == pages[1]
    assert pages[0].count("data:image/jpeg") == NUM_THUMBNAILS


def test_without_the_hash_of_a_video_its_thumbnails_are_not_cached(tmp_path):
    video = write_clip(tmp_path / "a.mp4", frames=20, rate=5)
    write_results(tmp_path / "out", [found(video)], max_moments=3, cache=DiskCache(tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
