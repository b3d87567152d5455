"""A library of videos: only what is new is read, a moved video costs nothing, what is said is found at once."""

import contextlib
import json
import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from calce_jax.errors import UserError
from calce_jax.search import library as library_module
from calce_jax.search.library import Library, LibraryError, default_library
from calce_jax.search.paths import SearchError
from calce_jax.search.speech_index import SpeechIndexError
from calce_jax.storage.locks import FileLock, LockError
from calce_jax.text.caption import Caption
from tests.helpers.commands import run_script
from tests.helpers.video_files import write_clip

SRT = "1\n00:00:01,000 --> 00:00:02,500\n{}\n"


def counts(result):
    return {name: value for name, value in vars(result).items() if name != "failures" and value}


@pytest.fixture
def videos(tmp_path) -> Path:
    folder = tmp_path / "videos"
    (folder / "sub").mkdir(parents=True)
    for number, (name, words) in enumerate({"one": "we look at the river", "sub/two": "a train", "three": ""}.items()):
        write_clip(folder / f"{name}.mp4", frames=50 + number, rate=10)
        if words:
            (folder / f"{name}.srt").write_text(SRT.format(words))
    return folder


@pytest.fixture
def library(tmp_path):
    with Library(tmp_path / "data/library.sqlite", create=True) as library:
        yield library


def found(library, query):
    return [
        (result.video.name, [(m.start, m.end) for m in result.query_results[0].moments])
        for result in library.search([query], 5)
    ]


def test_only_what_is_new_is_read(videos, library, monkeypatch):
    assert counts(library.index([videos])) == {"added": 3}
    assert [(v.path.name, v.num_captions) for v in library.videos()] == [
        ("one.mp4", 1),
        ("two.mp4", 1),
        ("three.mp4", 0),
    ]
    assert [round(v.duration, 1) for v in library.videos() if v.path.name == "one.mp4"] == [5.0]
    assert found(library, "rivers") == [("one.mp4", [(1.0, 2.5)])]
    assert found(library, "elephant") == []

    def read(path):
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr(library_module, "file_hash", read)
    monkeypatch.setattr(library_module, "searchable_duration", read)
    assert counts(library.index([videos])) == {"unchanged": 3}


def test_a_video_that_moved_is_not_decoded_again(videos, library, monkeypatch):
    library.index([videos])
    (videos / "sub/two.mp4").rename(videos / "renamed.mp4")
    (videos / "sub/two.srt").rename(videos / "renamed.srt")
    (videos / "one.mp4").rename(videos / "sub/one.mp4")
    shutil.move(videos / "one.srt", videos / "sub/one.srt")
    assert counts(library.index([videos])) == {"moved": 2, "unchanged": 1}
    assert found(library, "train") == [("renamed.mp4", [(1.0, 2.5)])]
    assert found(library, "river") == [("one.mp4", [(1.0, 2.5)])]
    assert len(library.videos()) == 3


def test_changed_captions_and_content_and_files_that_are_gone(videos, library):
    library.index([videos])
    (videos / "three.srt").write_text(SRT.format("an elephant"))
    write_clip(videos / "one.mp4", frames=70, rate=10)
    (videos / "sub/two.mp4").unlink()
    assert counts(library.index([videos])) == {"changed": 2, "removed": 1}
    assert found(library, "elephant") == [("three.mp4", [(1.0, 2.5)])]
    assert found(library, "train") == []
    assert found(library, "river") == [("one.mp4", [(1.0, 2.5)])]
    # What is outside the folders that were given stays.
    other = videos.parent / "other"
    other.mkdir()
    write_clip(other / "four.mp4", frames=30, rate=10)
    assert counts(library.index([other])) == {"added": 1}
    assert len(library.videos()) == 3


def test_copies_are_one_video_with_several_names(videos, library):
    shutil.copy(videos / "one.mp4", videos / "copy.mp4")
    shutil.copy(videos / "one.srt", videos / "copy.srt")
    assert counts(library.index([videos])) == {"added": 4}
    (videos / "one.mp4").unlink()
    assert counts(library.index([videos])) == {"unchanged": 3, "removed": 1}
    assert found(library, "river") == [("copy.mp4", [(1.0, 2.5)])]


def test_a_broken_video_is_reported_and_an_interruption_loses_nothing(videos, library):
    (videos / "broken.mp4").write_text("no video")

    def stop_after_two(paths):
        yield from paths[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        library.index([videos], stop_after_two)
    result = library.index([videos])
    assert result.added + result.unchanged == 3
    assert result.unchanged >= 1
    (failure,) = result.failures
    assert failure.video.endswith("broken.mp4")
    assert "it is not a video" in failure.reason


def test_copies_with_other_captions_keep_their_own(videos, library):
    (videos / "a").mkdir()
    shutil.copy(videos / "one.mp4", videos / "a/copy.mp4")
    for captions, words in (("", ""), (SRT.format("an elephant"), "elephant"), (SRT.format("a zebra"), "zebra")):
        if captions:
            (videos / "a/copy.srt").write_text(captions)
        library.index([videos])
        assert found(library, "river") == [("one.mp4", [(1.0, 2.5)])]
        assert not words or found(library, words) == [("copy.mp4", [(1.0, 2.5)])]
    assert found(library, "elephant") == []


def test_what_cannot_be_shown_takes_no_place(videos, library, caplog):
    for number in range(5):
        write_clip(videos / f"{number}.mp4", frames=30 + number, rate=10)
        (videos / f"{number}.srt").write_text(SRT.format("an elephant"))
    library.index([videos])
    for number in range(4):
        (videos / f"{number}.mp4").rename(videos / f"{number}.gone")
    (result,) = library.search(["elephant"], 1)
    assert result.video.name == "4.mp4"
    assert "4 of 8 videos have moved or changed since" in caplog.text
    # A file that has changed is not answered for, and one that has become unreadable goes.
    (videos / "4.mp4").write_text("no video any more")
    assert library.search(["elephant"], 1) == []
    assert len(library.index([videos]).failures) == 1
    assert not [video for video in library.videos() if video.path.name == "4.mp4"]


def test_captions_without_a_file_are_removed(videos, library):
    library._index.add("left by a kill", [Caption(1.0, 2.0, "an elephant")])
    library.index([videos])
    assert len(library._index.names()) == 3


def test_files_that_never_end_and_names_that_are_no_text(videos, library):
    os.mkfifo(videos / "pipe.mp4")
    os.symlink("/dev/zero", videos / "zero.mp4")
    shutil.copy(videos / "three.mp4", os.fsencode(videos) + b"/name\xff.mp4")
    result = library.index([videos])
    assert result.added == 3
    assert sorted(failure.reason.split(": ")[-1] for failure in result.failures) == [
        "it is no regular file",
        "it is no regular file",
        "its name is not UTF-8",
    ]


def test_one_folder_by_several_names_is_one_and_a_missing_one_removes_nothing(videos, library, monkeypatch):
    monkeypatch.chdir(videos)
    os.symlink(videos, videos.parent / "link")
    assert library.index([".", videos, "sub", "sub/..", videos.parent / "link"]).added == 3
    shutil.rmtree(videos / "sub")
    with pytest.raises(SearchError, match="sub: there is no such folder; connect its disk"):
        library.index([".", "sub"])
    assert len(library.videos()) == 3


def test_an_index_that_cannot_be_written_ends_at_once(videos, library, monkeypatch):
    def full(*arguments):
        raise SpeechIndexError("library.sqlite: database or disk is full", "make room")

    monkeypatch.setattr(library._index, "add", full)
    with pytest.raises(SpeechIndexError, match="disk is full"):
        library.index([videos])


def test_a_damaged_index_is_named(videos, library):
    library.index([videos])
    library._database.execute("UPDATE captions SET video_id = 99")
    library._database.commit()
    with pytest.raises(SpeechIndexError, match=r"library\.sqlite: it is damaged; remove the file, and index anew"):
        library.search(["river"], 5)


def test_two_writers_and_files_that_are_no_library(videos, library, tmp_path):
    with FileLock(Path(f"{library.path}.lock")), pytest.raises(LockError):
        library.index([videos])
    with pytest.raises(LibraryError, match="there is no library yet; make one with `calce index FOLDER`"):
        Library(tmp_path / "none.sqlite")
    other = tmp_path / "other.sqlite"
    sqlite3.connect(other).execute("CREATE TABLE mine (x)").connection.close()
    for content in (other.read_bytes(), b"nonsense" * 1000):
        other.write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.sqlite: .*give another file"):
            Library(other)


def test_the_default_file(monkeypatch, tmp_path):
    monkeypatch.delenv("CALCE_LIBRARY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_library() == tmp_path / "calce/library.sqlite"
    monkeypatch.setenv("CALCE_LIBRARY", str(tmp_path / "mine.sqlite"))
    assert default_library() == tmp_path / "mine.sqlite"


def test_the_commands(videos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CALCE_LIBRARY", str(tmp_path / "library.sqlite"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as error:
        run_script("ls")
    assert "there is no library yet" in str(error.value)
    (videos / "broken.mp4").write_text("no video")
    run_script("index", videos)
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path}/library.sqlite: 3 videos; 3 added, 1 failed\n"
    assert "broken.mp4" in printed.err
    (videos / "three.mp4").unlink()
    run_script("ls")
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["length", "captions", "file"]
    assert table[1].split() == ["00:05.0", "1", str(videos / "one.mp4")]
    assert table[3].endswith("three.mp4  (missing)")
    run_script("ls", "--json")
    assert [row["missing"] for row in json.loads(capsys.readouterr().out)] == [False, False, True]
    run_script("search", "--library", "--mode=speech", "a train", "--json")
    (moment,) = json.loads(capsys.readouterr().out)
    assert (moment["video"], moment["start"]) == (str(videos / "sub/two.mp4"), 1.0)
    run_script("search", "--library", "--mode=speech", "river", "--out=out")
    assert "searched 3 of 3 videos in" in capsys.readouterr().out
    assert os.listdir("out/videos") == ["one.mp4"]
    run_script("search", "--library", "--mode=speech", "elephant", "--quiet")
    assert "no moment found" in capsys.readouterr().out
    assert not (tmp_path / "found").exists()


def test_a_library_without_videos_is_not_searched(videos, library):
    with pytest.raises(SearchError, match="the library has no video; index some with `calce index FOLDER`"):
        library.search("river")
    library.index([videos])
    assert found(library, "river") == [("one.mp4", [(1.0, 2.5)])]
    assert [result.video.name for result in library.search("river")] == ["one.mp4"]
    for video in videos.rglob("*.mp4"):
        video.unlink()
    with pytest.raises(SearchError, match="none of its 3 videos is there as it was indexed"):
        library.search("river")


def test_videos_of_a_folder_that_is_gone_or_empty_stay_until_they_are_to_be_forgotten(videos, library):
    library.index([videos])
    other = videos.parent / "other"
    other.mkdir()
    write_clip(other / "four.mp4", frames=30, rate=10)
    library.index([other])
    shutil.rmtree(videos)
    remedy = "`calce index --forget` removes its 3 videos from the library"
    with pytest.raises(SearchError, match=f"there is no such folder; connect its disk; or {remedy}"):
        library.index([videos])
    videos.mkdir()
    with pytest.raises(SearchError, match=f"no video among .*; connect its disk; or {remedy}"):
        library.index([videos])
    assert len(library.videos()) == 4
    assert library.forget([videos]) == 3
    assert [video.path.name for video in library.videos()] == ["four.mp4"]
    assert library._index.names() == [library.videos()[0].index_name]
    with pytest.raises(SearchError, match="file names of videos end in"):
        library.index([videos])


def test_a_first_index_that_fails_leaves_no_library(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    library_file = tmp_path / "library.sqlite"
    with pytest.raises(SystemExit, match="no video among"):
        run_script("index", tmp_path / "empty", f"--library_file={library_file}")
    assert not library_file.exists()
    write_clip(tmp_path / "videos/one.mp4", frames=20, rate=10)
    run_script("index", tmp_path / "videos", f"--library_file={library_file}")
    with pytest.raises(SystemExit, match="no video among"):
        run_script("index", tmp_path / "empty", f"--library_file={library_file}")
    shutil.rmtree(tmp_path / "videos")
    run_script("index", "--forget", tmp_path / "videos", f"--library_file={library_file}")
    assert "1 videos forgotten, 0 left" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="the library has no video"):
        run_script("search", "--library", "river", "--mode=speech", f"--library_file={library_file}")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"a video, not a library" * 99), "give another file; or, if it was a library"),
        (lambda path: execute(path, "CREATE TABLE notes (text TEXT)"), "the database of another program; give another"),
    ],
)
def test_a_file_that_is_no_library_is_not_to_be_removed(tmp_path, make, message):
    path = tmp_path / "film.mp4"
    make(path)
    with pytest.raises(UserError, match=message):
        Library(path)


def test_a_library_of_another_version_is_named_so(library):
    library.close()
    execute(library.path, "PRAGMA user_version = 99")
    with pytest.raises(SpeechIndexError, match="made by another version of calce_jax; use that version, or index anew"):
        Library(library.path)


def execute(path, statement):
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)
