import io
import json
import os
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from calce_jax.datasets import prepare as module
from calce_jax.datasets.items import fill_items
from calce_jax.datasets.prepare import PrepareError, prepare_dataset, read_splits
from calce_jax.datasets.prepared_video import MAX_ID_BYTES, PrepareSettings, UnusableVideoError, load_video, make_job
from calce_jax.errors import UsageError
from calce_jax.input_pipeline.dataset import open_dataset
from calce_jax.moments.annotations import Annotation, AnnotationError
from calce_jax.storage.failures import Failure, failure_table
from calce_jax.storage.locks import FileLock, LockError
from calce_jax.video.decode import decode_jpeg, read_frames
from calce_jax.video.files import VIDEO_SUFFIXES
from tests.helpers.commands import run_script
from tests.helpers.video_files import GREY, write_clip

SETTINGS = PrepareSettings(frames=6, image_size=32)
SRT = "1\n00:00:00,500 --> 00:00:01,250\n<i>Look</i>, a lighthouse!\n"


def annotation(video: str, qid: int = 1, windows: list | None = None) -> Annotation:
    windows = [[0.5, 2]] if windows is None else windows
    return Annotation(qid, video, "A red circle stays.", ["A red circle"], 3, windows)


@pytest.fixture
def films(tmp_path):
    """Two good films of 3 s with captions, in two containers."""
    for name in ("a.mp4", "b.mkv"):
        write_clip(tmp_path / "films" / name, frames=30, rate=10)
        (tmp_path / "films" / name).with_suffix(".srt").write_text(SRT)
    return tmp_path / "films"


@pytest.fixture
def run(films, tmp_path):
    """Prepare queries of the split train in this process."""

    def run(rows, settings=SETTINGS, workers=1):
        return prepare_dataset(
            "qvhighlights",
            {"train": rows},
            videos=films,
            srts=films,
            out=tmp_path / "out",
            settings=settings,
            workers=workers,
        )

    return run


def test_a_video_of_many_queries_is_kept_once(run, films, tmp_path, monkeypatch):
    decoded = []
    original = module.prepare_video
    monkeypatch.setattr(module, "prepare_video", lambda job: (decoded.append(job.video), original(job)))
    done = run([annotation("a", 1), annotation("b", 2), annotation("a", 3, []), annotation("a", 4)])
    assert decoded == ["a", "b"]
    assert (done.num_ready, done.num_decoded, done.queries, done.failures) == (2, 2, {"train": 4}, [])
    assert (tmp_path / "out/failures.jsonl").read_text() == ""
    examples = open_dataset(tmp_path / "out", "train")
    assert [(example.qid, example.video) for example in examples] == [(1, "a"), (2, "b"), (3, "a"), (4, "a")]
    example = examples[2]
    assert example.captions == [(0.5, 1.25, "Look, a lighthouse!")]
    assert (example.total_frames, example.fps, example.duration) == (30, 10, 3)
    np.testing.assert_array_equal(example.indices, [0, 5, 10, 15, 20, 25])
    np.testing.assert_allclose(example.times, [0, 0.5, 1, 1.5, 2, 2.5], rtol=1e-6)
    greys = np.stack([decode_jpeg(frame)[16, 16] for frame in example.keyframes])
    assert greys.shape == (6, 3)
    np.testing.assert_allclose(greys[:, 0], GREY * example.indices, atol=GREY / 2)
    assert examples[0].windows.tolist() == [[0.5, 2]]
    assert sorted(path.name for path in (tmp_path / "out/videos").iterdir()) == ["a.npz", "b.npz"]


def test_items_that_are_not_annotated_are_the_nouns(run, tmp_path):
    bare = replace(annotation("a", 1), query="A red circle.", items=[])
    done = run([bare, annotation("a", 2), replace(bare, qid=3, query="Slowly.")])
    assert done.extracted_items == {"train": 1}
    assert [query.items for query in open_dataset(tmp_path / "out", "train")] == [["circle"], ["A red circle"], []]
    # As the tables of the original, whose preparation leaves them out.
    done = run([bare], settings=replace(SETTINGS, behaviour="reference"))
    assert done.extracted_items == {"train": 0}
    assert [query.items for query in open_dataset(tmp_path / "out", "train")] == [[]]
    assert fill_items([bare], "shapes")[0][0].items == ["red circle"]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_processes_give_the_same(run, films, tmp_path):
    write_clip(films / "c.webm", frames=5, rate=5, codec="libvpx-vp9")
    (films / "c.srt").touch()
    (films / "text.mp4").write_text("this is no film")
    (films / "text.srt").touch()
    rows = [annotation(video, qid) for qid, video in enumerate(["a", "b", "c", "text"])]
    done = run(rows, workers=2)
    assert (done.num_ready, done.num_decoded) == (3, 3)
    assert [failure.video for failure in done.failures] == ["text"]
    stored = load_video(tmp_path / "out/videos", "c")
    assert (len(stored.jpegs), stored.captions) == (5, [])
    alone = read_frames(films / "c.webm", 6, 32)
    np.testing.assert_array_equal(stored.times, alone.times)
    several = contents(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    run(rows, workers=1)
    assert contents(tmp_path / "out") == several, "the same inputs give the same bytes"


def test_a_second_run_goes_on(run, films, tmp_path):
    rows = [annotation("a", 1), annotation("b", 2)]
    run(rows[:1])
    (tmp_path / "out/videos/b.npz").write_bytes((tmp_path / "out/videos/a.npz").read_bytes()[:500])
    assert run(rows).num_decoded == 1  # b's file is half a file
    assert run(rows).num_decoded == 0
    assert run(rows, PrepareSettings(frames=5, image_size=32)).num_decoded == 2
    assert len(open_dataset(tmp_path / "out", "train")[0].keyframes) == 5
    (films / "b.srt").write_text(SRT.replace("lighthouse", "violin"))
    assert run(rows, PrepareSettings(frames=5, image_size=32)).num_decoded == 1
    assert open_dataset(tmp_path / "out", "train")[1].captions[0][2] == "Look, a violin!"


def _npy():
    file = io.BytesIO()
    np.save(file, np.arange(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[:-10],
        lambda content: b"\0" * len(content),
        lambda _: _npy(),
        lambda content: content.replace(b"duration.npy", b"duratiom.npy"),
        lambda content: content.replace(np.float64(3).tobytes(), np.float64(5).tobytes()),  # a checksum is wrong
    ],
)
def test_a_damaged_result_is_made_again(run, tmp_path, damage):
    rows = [annotation("a", 1)]
    run(rows)
    stored = tmp_path / "out/videos/a.npz"
    before = stored.read_bytes()
    stored.write_bytes(damaged := damage(before))
    assert damaged != before
    done = run(rows)
    assert (done.num_ready, done.num_decoded, done.queries) == (1, 1, {"train": 1})
    assert stored.read_bytes() == before


def test_two_that_prepare_into_one_folder_do_not_meet(run, tmp_path):
    with (
        FileLock(tmp_path / "out/prepare.lock"),
        pytest.raises(LockError, match=r"out/prepare\.lock: process .* writes"),
    ):
        run([annotation("a", 1)])
    assert list((tmp_path / "out").iterdir()) == []
    assert run([annotation("a", 1)]).num_ready == 1
    assert not (tmp_path / "out/prepare.lock").exists()


def test_new_windows_of_the_same_videos_leave_the_videos_table(run, films, tmp_path, monkeypatch):
    rows = [annotation("a", 1), annotation("b", 2)]
    built = []
    original = module.build_tables
    monkeypatch.setattr(module, "build_tables", lambda *given: built.append(1) or original(*given))
    run(rows)
    videos = tmp_path / "out/tables/videos"
    before = {path.name: path.stat().st_mtime_ns for path in videos.iterdir()}
    merged = [replace(row, stage1_windows=[[0, 1]]) for row in rows]
    with monkeypatch.context() as patch:
        # No room for another videos table is needed.
        patch.setattr(shutil, "disk_usage", lambda _: namedtuple("usage", "total used free")(10, 9, 1))
        assert run([*merged, annotation("a", 3)]).queries == {"train": 3}
    assert {path.name: path.stat().st_mtime_ns for path in videos.iterdir()} == before
    found = [example.stage1_windows for example in open_dataset(tmp_path / "out", "train")]
    assert [None if windows is None else windows.tolist() for windows in found] == [[[0, 1]], [[0, 1]], None]
    assert built == [1]

    run(merged[:1])  # a video less
    assert [len(open_dataset(tmp_path / "out", "train")), len(built)] == [1, 2]
    run(merged)  # and again one more, which was prepared before
    assert [len(open_dataset(tmp_path / "out", "train")), len(built)] == [2, 3]
    (films / "b.srt").write_text(SRT.replace("lighthouse", "violin"))
    with monkeypatch.context() as patch:
        patch.setattr(module, "videos_table_matches", lambda *_, **__: 1 / 0)  # stopped before the tables were written
        with pytest.raises(ZeroDivisionError):
            run(merged)
    run(merged)
    assert open_dataset(tmp_path / "out", "train")[1].captions[0][2] == "Look, a violin!"
    (videos / "metadata.json").write_text("{")
    run(merged)
    assert len(built) == 5


def test_the_broken_are_listed_and_the_others_go_on(run, films, tmp_path):
    shutil.copy(films / "a.mp4", films / "silent.mp4")
    shutil.copy(films / "a.mp4", films / "badsrt.mp4")
    (films / "badsrt.srt").write_text("1\nnot a time\nhello\n")
    (films / "cut.mp4").write_bytes((films / "a.mp4").read_bytes()[:1000])
    (films / "cut.srt").touch()
    (films / "empty.mp4").touch()
    (films / "empty.srt").touch()
    late = annotation("b", 9, [[0, 1], [3.5, 4]])
    videos = ["a", "gone", "silent", "badsrt", "cut", "empty", "../a", ".."]
    done = run([late, *(annotation(video, qid) for qid, video in enumerate(videos))])
    assert done.queries == {"train": 1}
    found = {failure.video: f"{failure.reason}; {failure.remedy}" for failure in done.failures}
    assert found.keys() == {*videos[1:], "b"}
    suffixes = "|".join(suffix[1:] for suffix in VIDEO_SUFFIXES)
    assert found["gone"] == f"there is no {films / 'gone'}.({suffixes}); add the video"
    assert found["silent"] == f"there is no {films / 'silent.srt'}; add the captions, an empty file if there are none"
    assert found["badsrt"].startswith(f"{films / 'badsrt.srt'}, line ")
    assert found["cut"].startswith(f"{films / 'cut.mp4'}: it is not a video")
    assert found["empty"].startswith(f"{films / 'empty.mp4'}: it is empty; fetch")
    assert found["../a"] == "its id cannot be a file name; correct it in the annotations"
    assert found["b"] == (
        "query 9: window [3.5, 4] begins after the video's end at 3.00 s; correct the window, or get the whole video"
    )
    lines = [json.loads(line) for line in (tmp_path / "out/failures.jsonl").read_text().splitlines()]
    assert [Failure(**line) for line in lines] == done.failures
    assert lines == sorted(lines, key=lambda line: line["video"])
    assert sorted(path.name for path in (tmp_path / "out/videos").iterdir()) == ["a.npz", "b.npz"]


def test_damage_on_the_disk_costs_one_video(run, tmp_path):
    rows = [annotation("a", 1), annotation("b", 2)]
    run(rows)
    path = tmp_path / "out/videos/b.npz"
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xd8\xff")  # in the first JPEG
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    done = run(rows)
    assert (done.num_ready, done.queries) == (1, {"train": 1})
    (failure,) = done.failures
    assert failure.reason.startswith(f"{path}: the file is damaged")
    assert failure.remedy == "remove it and run `calce prepare` again"
    assert json.loads((tmp_path / "out/failures.jsonl").read_text())["video"] == "b"


@pytest.mark.parametrize("video", ["", ".", "..", "../a", "/etc/a", "x/../a", "a\\b", "a\0b", "a" * (MAX_ID_BYTES + 1)])
def test_ids_stay_in_their_folder(films, tmp_path, video):
    with pytest.raises(UnusableVideoError, match="its id cannot be a file name"):
        make_job(video, films, None, tmp_path / "out", SETTINGS)


@pytest.mark.parametrize(
    ("video", "srt"),
    [
        ("GX010001.MP4", "GX010001.SRT"),
        ("IMG_0001.MOV", "IMG_0001.en.srt"),
        ("film.Mp4", "film.Srt"),
        ("動" * 83 + ".mp4", "動" * 83 + ".srt"),  # 253 bytes
        ("camera.m2ts", "camera.srt"),
    ],
)
def test_names_as_cameras_and_sites_give_them_are_found(run, films, tmp_path, video, srt):
    suffix = Path(video).suffix.lower()
    write_clip(tmp_path / f"clip{suffix}", frames=30, rate=10).rename(films / video)
    (films / srt).write_text(SRT)
    assert run([annotation(Path(video).stem)]).failures == []
    (example,) = open_dataset(tmp_path / "out", "train")
    assert (len(example.keyframes), len(example.captions)) == (6, 1)


def test_webvtt_captions_are_prepared_as_srt(run, films, tmp_path):
    write_clip(films / "web.mp4", frames=30, rate=10)
    (films / "web.vtt").write_text("WEBVTT\n\n00:00.500 --> 00:01.250\n<v Ann>Look</v>, a lighthouse!\n")
    assert run([annotation("a"), annotation("web", 2)]).failures == []
    by_subrip, by_webvtt = open_dataset(tmp_path / "out", "train")
    assert by_webvtt.captions
    assert by_webvtt.captions == by_subrip.captions


def test_captions_in_several_languages_cost_one_video(run, films):
    for name in ("c.mp4", "c.en.srt", "c.de.srt"):
        (films / name).touch()
    (failure,) = run([annotation("a"), annotation("c", 2)]).failures
    assert failure.reason == f"{films} has captions of it in several languages: c.de.srt, c.en.srt"
    assert failure.remedy == "leave one of them"


def test_a_late_picture_has_a_players_times(run, films, tmp_path):
    ticks = [20 + n for n in range(30)]
    write_clip(films / "late.mp4", frames=30, rate=10, ticks=ticks, sound=True)
    (films / "late.srt").write_text(SRT)
    assert run([annotation("late", windows=[[2.5, 4]])]).failures == []
    (example,) = open_dataset(tmp_path / "out", "train")
    np.testing.assert_allclose(example.times, [2, 2.5, 3, 3.5, 4, 4.5], atol=1e-3)
    assert load_video(tmp_path / "out/videos", "late").duration == pytest.approx(5.0)


def test_a_split_without_videos_is_left_out(films, tmp_path):
    splits = {"train": [annotation("a")], "val": [annotation("gone", 2)]}
    done = prepare_dataset(
        "shapes", splits, videos=films, srts=None, out=tmp_path / "out", settings=SETTINGS, workers=1
    )
    assert done.queries == {"train": 1}
    assert open_dataset(tmp_path / "out", "train")[0].captions == []


def test_nothing_works(films, tmp_path):
    out = tmp_path / "out"
    splits = {"train": [annotation("gone")]}
    done = prepare_dataset("qvhighlights", splits, videos=films, srts=films, out=out, settings=SETTINGS, workers=1)
    assert (done.num_ready, done.queries, len(done.failures)) == (0, {}, 1)
    assert [path.name for path in out.iterdir()] == ["failures.jsonl"]


def test_no_room(run, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 9, 1))
    with pytest.raises(PrepareError, match=r"out=.* needs about .* and 0 kB are free; make room"):
        run([annotation("a")])


def test_disk_full_on_the_way(run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(PrepareError, match=r"cannot write .*a\.npz \(No space left on device\); make room"):
            run([annotation("a"), annotation("b", 2)])
    assert list((tmp_path / "out/videos").iterdir()) == []
    assert run([annotation("a"), annotation("b", 2)]).num_decoded == 2


@pytest.mark.slow
def test_a_crash_of_the_decoder_costs_one_video(run, films, monkeypatch):
    # Workers are new interpreters: what crashes there must come in by the environment, as a library does.
    hook = films / "sitecustomize.py"
    hook.write_text(
        "import os, sys, importlib.abc\n"
        "def watch(event, args):\n"
        "    if event == 'open' and str(args[0]).endswith('crash.srt'):\n"
        "        os._exit(9)\n"
        "sys.addaudithook(watch)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(films))
    shutil.copy(films / "a.mp4", films / "crash.mp4")
    (films / "crash.srt").touch()
    done = run([annotation("a", 1), annotation("crash", 2), annotation("b", 3)], workers=2)
    assert [(failure.video, failure.reason) for failure in done.failures] == [
        ("crash", f"{films / 'crash.mp4'}: the decoder crashed")
    ]
    assert done.num_ready == 2


def test_folders_that_are_not_there(films, tmp_path):
    for folders in ({"videos": tmp_path / "no", "srts": films}, {"videos": films, "srts": tmp_path / "no"}):
        with pytest.raises(PrepareError, match=r"--(videos|srts)=.*no: no such folder; correct the flag"):
            prepare_dataset(
                "qvhighlights", {"train": [annotation("a")]}, **folders, out=tmp_path / "out", settings=SETTINGS
            )


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="--frames=0: must be from 1 to 10000; choose another number"):
        PrepareSettings(frames=0)
    with pytest.raises(ValueError, match="--image_size=9999: must be from 1 to 4096"):
        PrepareSettings(frames=2, image_size=9999)


def test_splits_by_name(tmp_path):
    row = {"qid": 1, "query": "A cat", "vid": "a", "duration": 3}
    for name in ("highlight_train_release.jsonl", "mine.jsonl", "train_val.jsonl"):
        (tmp_path / name).write_text(json.dumps(row) + "\n")
    (tmp_path / "charades_sta_test.txt").write_text("AO8RW 0.0 6.9##a person puts a book away.\n")
    train, mine = str(tmp_path / "highlight_train_release.jsonl"), str(tmp_path / "mine.jsonl")
    splits = read_splits([train, f"val={mine}", str(tmp_path / "charades_sta_test.txt")])
    assert {split: rows[0].video for split, rows in splits.items()} == {"train": "a", "val": "a", "test": "AO8RW"}
    for wrong in ([mine], [str(tmp_path / "train_val.jsonl")]):
        with pytest.raises(UsageError, match="does not tell its split; write train="):
            read_splits(wrong)
    with pytest.raises(UsageError, match="--annotations: train is given twice"):
        read_splits([train, f"train={mine}"])
    with pytest.raises(UsageError, match=r"--annotations=foo=val\.jsonl: foo is no split; write train=FILE, val=FILE"):
        read_splits(["foo=val.jsonl"])
    with pytest.raises(UsageError, match="--annotations=val=: val has no file; write train=FILE"):
        read_splits(["val="])
    (tmp_path / "mine.jsonl").write_text('{"qid": 1, "vid": "a", "duration": 3}\n')
    with pytest.raises(AnnotationError, match="query: expected a sentence"):
        read_splits([f"val={mine}"])


def test_table_has_columns_and_an_end():
    failures = [Failure(f"v{number}", "it is empty", "fetch it") for number in range(100)]
    lines = failure_table(failures).splitlines()
    assert lines[0].split("  ")[0] == "video"
    assert lines[1] == "v0     it is empty    fetch it"
    assert lines[-1] == "... and 60 more, in failures.jsonl"
    assert len(lines) == 42


@pytest.fixture
def command(films, tmp_path):
    """Run `calce prepare` on an annotation of each video."""

    def run(*videos):
        rows = [
            {"qid": number, "query": "A cat.", "vid": video, "duration": 3, "relevant_windows": [[0, 1]]}
            for number, video in enumerate(videos)
        ]
        (tmp_path / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        run_script(
            "prepare",
            "--dataset=qvhighlights",
            f"--videos={films}",
            f"--srts={films}",
            f"--annotations={tmp_path / 'val.jsonl'}",
            f"--out={tmp_path / 'out'}",
            "--frames=3",
            "--image_size=16",
            "--workers=1",
        )

    return run


def test_command(command, capsys, tmp_path):
    command("a", "gone")
    printed = capsys.readouterr().out
    assert "there is no" in printed
    assert "1 failures" in printed
    assert f"val: 1 of 2 queries are in {tmp_path / 'out'}/tables\nval: items of 1 queries are not annotated" in printed
    assert len(open_dataset(tmp_path / "out", "val")) == 1


def test_command_fails_if_nothing_worked(command, capsys):
    with pytest.raises(SystemExit, match="no query has a usable video"):
        command("gone", "lost")
    assert "0 of 2 queries" in capsys.readouterr().out
