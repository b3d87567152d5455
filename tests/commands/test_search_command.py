"""`calce search` and `calce cut` as people type them; searches of what is said, which need no model."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import pytest

from calce_jax.commands import search_plan
from calce_jax.commands.flags.search import FORMATS
from calce_jax.errors import UserError
from calce_jax.search import modes
from calce_jax.search.moment_list import EXPORTS
from calce_jax.speech.captioning import CaptioningResult
from calce_jax.text.caption_files import find_captions
from tests.helpers.commands import run_script
from tests.helpers.video_files import write_clip

SRT = "1\n00:00:01,000 --> 00:00:02,500\nwe look at the river\n\n2\n00:00:12,000 --> 00:00:14,000\nand then a train\n"


pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    for name in ("one", "two"):
        write_clip(tmp_path / f"{name}.mp4", frames=150, rate=10)
    (tmp_path / "one.srt").write_text(SRT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_alone(*arguments, probe=False):
    """Run a command in a process of its own; the probe prints which of the heavy libraries it has imported."""
    program = "import sys; from calce_jax.commands.cli import main; main(sys.argv[1:]); "
    if probe:
        program += "print([name for name in ('jax', 'flax', 'transformers') if name in sys.modules])"
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": root})


def test_a_sentence_is_an_argument_and_the_folder_has_a_name(folder, capsys):
    run_script("search", "one.mp4", "two.mp4", "The river, again?", "--mode=speech")
    printed = capsys.readouterr()
    table = [line.split() for line in printed.out.splitlines() if line.startswith("  one.mp4")]
    assert table == [["one.mp4", "00:01.0", "00:02.5", table[0][3]]]
    assert "open found/the-river-again/index.html" in printed.out
    assert "two.mp4: it has no captions; --whisper=small.en makes them" in printed.err
    (one, two) = json.loads((folder / "found/the-river-again/moments.json").read_text())
    assert [len(entry["queries"][0]["moments"]) for entry in (one, two)] == [1, 0]
    page = (folder / "found/the-river-again/index.html").read_text()
    assert "we look at the river" in page


def test_json_is_all_that_is_printed_and_nothing_is_written(folder, capsys):
    before = sorted(folder.iterdir())
    run_script("search", "one.mp4", "river", "--query=a train", "--mode=speech", "--json")
    printed = capsys.readouterr().out
    moments = json.loads(printed)
    assert [(m["query"], m["start"], m["end"]) for m in moments] == [("river", 1.0, 2.5), ("a train", 12.0, 14.0)]
    assert sorted(folder.iterdir()) == before


def test_formats_clips_and_handles(folder):
    formats = "--export=csv,edl,fcpxml,otio,vtt,chapters"
    flags = ("--out=out", "--clips", "--handles=2", "--quiet", "--seconds", formats)
    printed = run_alone("search", ".", "train", "--mode=speech", *flags)
    assert printed.stderr == ""
    assert printed.stdout.split() == ["train", "file", "start", "end", "score", "one.mp4", "12.00", "14.00", "1.000"]
    names = {path.name for path in Path("out").iterdir()}
    written = {
        "moments.csv",
        "moments.edl",
        "moments.fcpxml",
        "moments.otio",
        "moments_one.vtt",
        "moments_one.chapters.txt",
    }
    assert names == written | {"index.html", "moments.json", "videos", "clips"}
    assert find_captions(Path("out"), "one") is None, "a later search must not take them for captions"
    (row,) = csv.DictReader(Path("out/moments.csv").read_text().splitlines())
    assert (row["start"], row["end"]) == ("10.00", "15.00"), "as far as the video goes"
    (clip,) = Path("out/clips").iterdir()
    assert clip.name == "one_00-00-12_train.mp4"
    with av.open(str(clip)) as container:
        assert container.duration / av.time_base == pytest.approx(5.0, abs=0.15)


@pytest.mark.parametrize("name", ["videos/one.mp4", "clips/mine.mp4", "index.html"])
def test_a_search_replaces_no_file_of_somebody_else(folder, name, capsys):
    mine = folder / "home" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(SystemExit):
        run_script("search", "one.mp4", "river", "--mode=speech", "--out=home")
    assert (
        f"--out=home has {name.split('/')[0]} that no search has written; choose another folder"
        in capsys.readouterr().err
    )
    assert mine.read_text() == "mine"
    run_script("search", "one.mp4", "river", "--mode=speech", "--out=own")
    run_script("search", "one.mp4", "train", "--mode=speech", "--out=own")


def test_a_folder_that_cannot_be_used_is_refused_before_the_search(folder, monkeypatch):
    (folder / "home").mkdir()
    (folder / "home/index.html").write_text("mine")
    searched = []
    monkeypatch.setattr(modes, "search_videos", lambda *_, **__: searched.append(True))
    with pytest.raises(SystemExit):
        run_script("search", "one.mp4", "river", "--mode=speech", "--out=home")
    assert not searched


def test_a_library_in_which_nothing_is_said_leaves_no_folder(folder, capsys):
    run_script("index", "one.mp4", "--library_file=library.sqlite")
    for name, out in (("whale", "none"), ("river", "some")):
        run_script("search", name, "--library", "--library-file=library.sqlite", "--mode=speech", f"--out={out}")
    assert (folder / "some/index.html").is_file()
    assert not (folder / "none").exists()
    assert "searched 1 of 1 videos" in capsys.readouterr().out


def test_captions_that_end_after_the_video(folder, capsys):
    late = "\n3\n99998:00:00,000 --> 99998:00:01,000\na whale\n\n4\n00:00:14,500 --> 00:09:00,000\na whale again\n"
    (folder / "one.srt").write_text(SRT + late)
    run_script("search", "one.mp4", "whale", "--mode=speech", "--json")
    assert [(m["start"], m["end"]) for m in json.loads(capsys.readouterr().out)] == [(14.5, 15.0)]


def test_the_formats_are_those_of_the_python_interface():
    assert tuple(EXPORTS) == FORMATS


def test_a_low_score_is_probably_not_there(folder, capsys):
    run_script("search", "one.mp4", "a river and an elephant", "--mode=speech", "--json")
    assert json.loads(capsys.readouterr().out)
    run_script("search", "one.mp4", "a river and an elephant", "--mode=speech", "--min_score=0.99", "--quiet")
    assert "probably not in these videos: no moment scores 0.99 or more" in capsys.readouterr().out


def test_the_first_moment_is_played(folder, monkeypatch, tmp_path_factory):
    programs = tmp_path_factory.mktemp("programs")
    (programs / "vlc").write_text('#!/bin/sh\necho "$@" > played.txt\n')
    (programs / "vlc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/bin:/usr/bin")
    run_script("search", "one.mp4", "train", "--mode=speech", "--json", "--play")
    assert (folder / "played.txt").read_text().split() == [
        "--start-time=12.00",
        "--stop-time=14.00",
        str(folder / "one.mp4"),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no video; give files, or folders of videos"),
        (["a dog"], "no video (there is no file a dog); give files"),
        (["one.mp4"], "no sentence; describe the moment in quotes: calce search film.mp4"),
        (
            ["one.mp4", "x", "--export=csv,avi"],
            "--export=avi: no such format; choose among csv, edl, fcpxml",
        ),
        (["one.mp4", "x", "--json", "--clips"], "--clips with --json writes files; say where with --out"),
        (["one.mp4", "x", "--mode=speech", "--checkpoint=runs"], "--mode=speech uses no model; leave --checkpoint"),
        (["one.mp4", "x", "--mode=both", "--srt=none"], "--mode=both searches captions, and --srt=none says"),
        (["one.mp4", "x", "--min_score=2"], "Invalid value for '--min_score': 2.0 is not in the range 0<=x<=1."),
        (["one.mp4", "x", "--handles=nan"], "--handles=nan: must be a number"),
        (
            ["x", "--library", "--mode=speech", "--srt=a.srt"],
            "--library --mode=speech searches captions that are indexed",
        ),
        (["one.mp4", "x", "--library"], "--library searches the videos of the library; leave one.mp4 out"),
    ],
)
def test_a_wrong_search(folder, capsys, arguments, message):
    with pytest.raises(SystemExit) as error:
        run_script("search", *arguments)
    assert error.value.code == 2
    assert f"calce search: {message}" in capsys.readouterr().err


def test_without_a_player_nothing_is_searched(folder, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        run_script("search", "one.mp4", "x", "--mode=speech", "--play")
    assert "--play: none of mpv, vlc is installed" in capsys.readouterr().err


def test_speech_is_searched_without_jax(folder):
    done = run_alone("search", "one.mp4", "river", "--mode=speech", "--quiet", probe=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.release
def test_a_search_whose_programs_are_kept_does_without_flax(folder):
    search = ("search", "one.mp4", "a red circle moves right", "--quiet", "--cache=cache")
    first, second = (run_alone(*search, probe=True).stdout.splitlines()[-1] for _ in range(2))
    assert "'flax'" in first
    assert second == "['jax']"


def test_what_opens_a_model_does_without_flax():
    probe = (
        "import sys, calce_jax.search.load_searcher; print([n for n in ('jax', 'flax', 'optax') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "['jax']\n"


def test_programs_and_the_rest_are_read_from_one_cache(folder, monkeypatch):
    """Which warns once of what it cannot read or write."""
    opened, open_cache = [], search_plan.open_cache

    def stop(cache, options, reporter, ahead):
        assert [cache, ahead.cache] == opened * 2
        raise UserError("stopped here")

    monkeypatch.setattr(search_plan, "open_cache", lambda *options: opened.append(open_cache(*options)) or opened[-1])
    monkeypatch.setattr(search_plan, "open_searcher", stop)
    with pytest.raises(SystemExit, match="Error: stopped here"):
        run_script("search", "one.mp4", "a red circle", "--cache=cache")


def test_a_part_is_cut(folder, capsys):
    run_script("cut", "one.mp4", "0:03", "4.5")
    assert capsys.readouterr().out == "one_00-00-03_cut.mp4: 00:03.0 - 00:04.5 of one.mp4\n"
    run_script("cut", "one.mp4", "3", "99", "--copy", "--out=copy.mkv", "--handles=1")
    assert capsys.readouterr().out == "copy.mkv: 00:02.0 - 00:15.0 of one.mp4\n"
    for name, seconds in (("one_00-00-03_cut.mp4", 1.5), ("copy.mkv", 15.0)):
        with av.open(str(folder / name)) as container:
            # The copy begins at the key frame before, the first of this file.
            assert container.duration / av.time_base == pytest.approx(seconds, abs=0.3)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["one.mp4"], 2, "expected a video, a start and an end; for example"),
        (["one.mp4", "soon", "3"], 2, "'soon' is no time; write seconds, m:ss or h:mm:ss"),
        (["one.mp4", "3", "3"], 2, "the end, 3, is not behind the start, 3"),
        (["no.mp4", "1", "3"], 2, "no.mp4: there is no such file"),
        (["one.mp4", "1", "3", "--out=one.mp4"], 2, "--out=one.mp4 is the file of the video; choose another"),
        (["one.mp4", "1", "3", "--out=/dev/full"], 2, "--out=/dev/full is a device or a pipe, which a file cannot"),
        (["one.mp4", "1", "3", "--out=x.mkv"], 2, "--out=x.mkv: the name must end in .mp4, or add --copy"),
        (["one.mp4", "1", "3", "--out=x.avi", "--copy"], 2, "--out=x.avi: the name must end in .mp4 or .mov"),
        (["one.mp4", "20", "30"], 1, "one.mp4: it ends at 00:15.0, before 20; choose an earlier start"),
        (["one.srt", "1", "3"], 1, "one.srt: it is not a video"),
    ],
)
def test_a_wrong_cut(folder, capsys, arguments, code, message):
    before = sorted(folder.iterdir())
    with pytest.raises(SystemExit) as error:
        run_script("cut", *arguments)
    told = str(error.value.code) if code == 1 else capsys.readouterr().err
    assert message in told
    assert (error.value.code == 2) is (code == 2)
    assert sorted(folder.iterdir()) == before


def test_language_chooses_among_several_captions(folder, capsys, caplog):
    for language, text in (("en", "the river"), ("de", "der Fluss")):
        (folder / f"two.{language}.srt").write_text(f"1\n00:00:01,000 --> 00:00:02,000\n{text}\n")
    for language in ("de", "German"):
        run_script("search", "two.mp4", "Fluss", "--mode=speech", "--json", f"--language={language}")
        (moment,) = json.loads(capsys.readouterr().out)
        assert (moment["start"], moment["end"]) == (1.0, 2.0)
    run_script("search", "two.mp4", "Fluss", "--mode=speech", "--json")
    assert "two.de.srt, two.en.srt; choose with --language" in caplog.text
    with pytest.raises(SystemExit):
        run_script("search", "two.mp4", "Fluss", "--mode=speech", "--language=klingonish")
    assert (
        "language: 'klingonish' is none; give a code, such as de or pt-BR, or an English name"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--hotwords=Jezero"], "--hotwords does nothing without --whisper"),
        (["--hotwords=Jezero", "--whisper=tiny", "--srt=one.srt"], "--whisper does nothing with --srt=one.srt"),
        (["--hotwords=Jezero", "--whisper=tiny", "--srt=one.srt"], "--hotwords does nothing without --whisper"),
        (["--language=de", "--srt=one.srt"], "--language does nothing with --srt=one.srt"),
        (["--whisper=tiny"], "one.mp4: --whisper does nothing, since there are captions beside it or in it"),
    ],
)
def test_an_option_that_does_nothing_says_so_once(folder, capsys, arguments, line):
    run_script("search", "one.mp4", "river", "--mode=speech", "--out=out", *arguments)
    assert capsys.readouterr().err.splitlines().count(line) == 1
    run_script("search", "one.mp4", "river", "--mode=speech", "--out=out", "--quiet", *arguments)
    assert "does nothing" not in capsys.readouterr().err


def test_a_silent_film_says_so(folder, capsys, monkeypatch):
    def caption(videos, out, transcriber, **_):
        out.mkdir(parents=True, exist_ok=True)
        paths = [out / f"{video.stem}.srt" for video in videos]
        for path in paths:
            path.touch()
        return CaptioningResult(written=paths, no_audio=[v for v in videos if v.stem == "two"])

    monkeypatch.setattr("calce_jax.speech.captioning.caption_videos", caption)
    arguments = ("two.mp4", "river", "--mode=speech", "--out=out", "--whisper=tiny")
    run_script("search", *arguments, "--cache=cache")
    assert "two.mp4: no audio; its captions are empty" in capsys.readouterr().err.splitlines()
    run_script("search", *arguments, "--cache=cache")
    assert "two.mp4: no audio or no speech, as an earlier search found" in capsys.readouterr().err
    run_script("search", *arguments, "--cache=other", "--quiet")
    assert "no audio" not in capsys.readouterr().err
