"""A library from the command line: pictures looked at once, the best segments searched, folders watched."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from calce_jax.search.samples import load_samples
from tests.helpers.commands import run_script
from tests.helpers.video_files import write_clip

CALCE = [sys.executable, "-m", "calce_jax.commands.cli"]


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    """A folder with the sample videos, and a library of them that the tiny model has looked at."""
    folder = tmp_path_factory.mktemp("indexed")
    for sample in load_samples():
        for file in (sample.video, sample.video.with_suffix(".srt")):
            shutil.copy(file, folder)
    run_script("index", str(folder), "--picture", f"--library_file={folder}/library.sqlite", f"--cache={folder}/cache")
    return folder


@pytest.fixture
def search(indexed, capsys):
    """Return a function that searches the library, and returns the moments."""

    def run(*arguments: str) -> list[dict]:
        options = [f"--library_file={indexed}/library.sqlite", f"--cache={indexed}/cache", "--json"]
        run_script("search", "--library", *options, *arguments)
        return json.loads(capsys.readouterr().out)

    return run


@pytest.mark.slow
def test_a_library_is_searched_by_its_best_segments(indexed, search, capsys):
    moments = search("A white circle appears.")
    assert [Path(moment["video"]).name for moment in moments][:1] == ["shapes_test_000000.mp4"]
    assert moments[0]["score"] > 0.9
    files = [str(indexed / sample.video.name) for sample in load_samples()]
    run_script("search", *files, "A white circle appears.", "--json", f"--cache={indexed}/cache")
    assert json.loads(capsys.readouterr().out) == moments
    # One segment is asked: that of one video.
    assert len({moment["video"] for moment in search("A white circle appears.", "--candidates=1")}) == 1


@pytest.mark.release
def test_what_does_not_happen_is_not_found_unless_it_is_asked_for(indexed, search, capsys):
    assert search("a purple elephant") == []
    assert search("a purple elephant", "--min_score=0")
    out = indexed / "found"
    run_script("search", str(indexed), "a purple elephant", f"--out={out}", f"--cache={indexed}/cache", "--quiet")
    assert "probably not in these videos: the best moment scores 0." in capsys.readouterr().out
    assert "Probably not here: the best moment scores 0." in (out / "index.html").read_text()


@pytest.mark.release
def test_words_and_pictures_of_a_library(search):
    moments = search("tell me about the train", "--mode=both")
    queries = {moment["query"] for moment in moments}
    assert queries == {"tell me about the train", "tell me about the train (in words)"}
    (best,) = [moment for moment in moments if moment["query"].endswith("(in words)") and moment["position"] == 1]
    assert (best["start"], best["score"]) == (11.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--srt=none", "--piece_seconds=10"])
def test_a_library_is_searched_as_it_was_indexed(search, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        search("a circle", option)
    assert f"{option.partition('=')[0]} is not for a library" in capsys.readouterr().err


def test_a_model_that_is_not_used_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_script("index", str(tmp_path), "--checkpoint=runs/none")
    assert "--checkpoint is for --picture; give both" in capsys.readouterr().err


def test_a_library_without_pictures_is_not_offered_to_visitors(tmp_path, capsys):
    write_clip(tmp_path / "one.mp4", frames=20, rate=10)
    run_script("index", str(tmp_path), f"--library_file={tmp_path}/library.sqlite")
    with pytest.raises(SystemExit, match="no model has looked at its videos; run `calce index --picture` first"):
        run_script("web", "--library", f"--library_file={tmp_path}/library.sqlite")


@pytest.mark.release
def test_a_watched_folder_is_indexed_until_it_is_interrupted(tmp_path, signals_heard):
    pytest.importorskip("watchfiles", reason="watchfiles is absent: pip install 'calce_jax[watch]'")
    folder = tmp_path / "videos"
    folder.mkdir()
    write_clip(folder / "one.mp4", frames=20, rate=10)
    process = subprocess.Popen(
        [*CALCE, "index", str(folder), f"--library_file={tmp_path}/library.sqlite", "--watch"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    timer = threading.Timer(240, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("1 videos; 1 added\n")
        (folder / "notes.txt").write_text("no video")
        write_clip(folder / "two.mp4", frames=30, rate=10)
        assert process.stdout.readline().endswith("2 videos; 1 added, 1 unchanged\n")
        (folder / "two.srt").write_text("1\n00:00:01,000 --> 00:00:02,500\na river\n")
        assert process.stdout.readline().endswith("2 videos; 1 changed, 1 unchanged\n")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    finally:
        timer.cancel()
        process.kill()
        process.communicate()
