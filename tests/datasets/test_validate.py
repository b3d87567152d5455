"""Annotations held against their videos: every fault is named, and nothing is written."""

import json
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from calce_jax.datasets.validate import validate_dataset
from calce_jax.moments.annotations import read_annotations
from tests.helpers.commands import run_script
from tests.helpers.video_files import write_clip

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dataset(tmp_path):
    """Four videos of 10 s, three of which something is wrong with; the annotations by split."""
    rows = {"train": [], "val": []}
    for split, video, window, duration in (
        ("train", "fine", [1, 4], 10),
        ("train", "late", [12, 14], 20),
        ("train", "both", [0, 2], 10),
        ("val", "both", [0, 2], 10),
        ("val", "gone", [0, 2], 10),
    ):
        row = {"qid": f"{split}_{video}", "query": "A cat.", "vid": video, "duration": duration}
        rows[split].append(row | {"relevant_windows": [window]})
        if video != "gone":
            write_clip(tmp_path / "videos" / f"{video}.mp4", frames=20, rate=2)
            (tmp_path / "videos" / f"{video}.srt").write_text("")
    (tmp_path / "videos/fine.srt").write_text("1\n00:00:30,000 --> 00:00:31,000\nafter the end\n")
    (tmp_path / "videos/late.srt").write_text("1\nno times\nwords\n")
    for split, each in rows.items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    return tmp_path


def test_every_fault_is_named_with_its_remedy(dataset):
    splits = {split: read_annotations(dataset / f"{split}.jsonl") for split in ("train", "val")}
    found = validate_dataset(splits, dataset / "videos", dataset / "videos")
    by_video = {fault.video: fault for fault in found.faults}
    assert sorted(by_video) == ["both", "fine", "gone", "late"]
    assert by_video["both"].reason == "it is in train and in val"
    assert "there is no" in by_video["gone"].reason
    assert "late.srt, line 2" in by_video["late"].reason
    assert "1 captions in" in by_video["fine"].reason
    assert all(fault.remedy for fault in found.faults)
    late = f"{dataset}/train.jsonl, line 2 (query train_late)"
    assert found.row_faults == {
        "train": [
            f"{late}, duration: annotated with 20 s, but the file of late has 10.0 s; correct the duration, or get the "
            "right video",
            f"{late}, relevant_windows: [12, 14] begins after the end of late at 10.00 s; correct the window, or get "
            "the whole video",
        ],
        "val": [],
    }
    assert found.num_faults == 6
    assert (found.num_videos, found.num_windows, found.without_items) == (4, 5, 5)
    assert found.max_duration == pytest.approx(10.0)


def test_the_command_tells_and_writes_nothing(dataset):
    before = sorted(dataset.rglob("*"))
    given = [f"--videos={dataset}/videos", "--dataset=shapes", "--check"]
    given += [f"--annotations=train={dataset}/train.jsonl,val={dataset}/val.jsonl"]
    command = [sys.executable, str(ROOT / "launch/prepare.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 1
    assert "4 videos, 3 of which can be read, 0.01 hours; the longest is 10.0 s" in done.stdout
    assert "it is in train and in val" in done.stdout
    assert "4 faults" in done.stdout  # captions are not given
    assert "Traceback" not in done.stderr
    assert sorted(dataset.rglob("*")) == before


def check(capsys, *arguments, code=1):
    """Run `calce prepare --check`, which exits with 1 or, where nothing is wrong, with 0; return what it printed."""
    with pytest.raises(SystemExit) if code else nullcontext() as stopped:
        run_script("prepare", "--check", "--dataset=qvhighlights", *arguments)
    assert code == (stopped.value.code if stopped else 0)
    return capsys.readouterr().out.splitlines()


def test_windows_beyond_the_video_are_faults_of_the_check_alone(tmp_path, capsys):
    write_clip(tmp_path / "videos/a.mp4", frames=20, rate=2)
    lines = ["a 1.0 4.0##A cat.", "a 5.0 5.0##A dog.", "a 8.0 27.0##A fox.", "a 8.0 10.9##A hen."]
    (tmp_path / "charades_sta_test.txt").write_text("\n".join(lines))
    files = (f"--videos={tmp_path}/videos", f"--annotations={tmp_path}/charades_sta_test.txt")
    printed = check(capsys, *files)
    assert printed[0] == (
        f"{tmp_path}/charades_sta_test.txt, line 3 (query charades_sta_test_3), relevant_windows: [8.0, 27.0] ends "
        "after the end of a at 10.00 s; correct the window, or get the whole video"
    )
    assert printed[-2:] == [
        "1 queries have a window of no length, which no answer can meet: charades_sta_test_2",
        "1 faults",
    ]
    run_script("prepare", "--dataset=charades_sta", *files, "--frames=4", "--image_size=32", f"--out={tmp_path}/out")
    assert "test: 4 of 4 queries" in capsys.readouterr().out
    (tmp_path / "charades_sta_test.txt").write_text("\n".join(lines[:2] + lines[3:]))
    assert check(capsys, *files, code=0)[-1] == "0 faults"


def test_faults_of_all_files_are_listed_in_one_round(dataset, capsys):
    rows = [json.loads(line) for line in (dataset / "train.jsonl").read_text().splitlines()]
    bare = {name: value for name, value in rows[0].items() if name != "relevant_windows"}
    train = [
        *rows,
        *({**bare, "qid": f"bare{n}"} for n in range(25)),
        {**bare, "qid": "x", "relevent_windows": [[1, 2]]},
    ]
    (dataset / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in train))
    val = [*map(json.loads, (dataset / "val.jsonl").read_text().splitlines()), {**rows[0], "qid": "y", "query": ""}]
    (dataset / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in val))
    files = f"--annotations=train={dataset}/train.jsonl,val={dataset}/val.jsonl,test={dataset}/none.jsonl"
    printed = check(capsys, files, f"--videos={dataset}/videos")
    assert printed[0].endswith(
        "line 29, relevent_windows: there is no such field; did you mean relevant_windows? Rename it"
    )
    assert "line 2 (query train_late), duration" in printed[1]
    assert printed[3].endswith(
        "line 4 (query bare0), relevant_windows: none, so it cannot be trained on; add the windows or drop the row"
    )
    assert printed[20] == "train: and 8 more"
    assert f"{dataset}/val.jsonl, line 3, query: expected a sentence" in printed[21]
    assert f"{dataset}/none.jsonl: no such file of annotations" in printed[22]
    assert any("it is in train and in val" in line for line in printed[23:])  # of the rows that can be read
    assert printed[-1] == "32 faults"
    with pytest.raises(SystemExit) as error:
        run_script("prepare", "--dataset=shapes", files, f"--videos={dataset}/videos", f"--out={dataset}/out")
    for part in ("did you mean relevant_windows", "val.jsonl, line 3, query", "none.jsonl: no such file"):
        assert part in str(error.value.code)
    assert not (dataset / "out/tables").exists()


def test_only_training_queries_need_windows(dataset):
    (row,) = (row for row in read_annotations(dataset / "train.jsonl") if row.video == "fine")
    bare = replace(row, windows=None)
    for split, expected in (("train", 1), ("val", 0), ("test", 0)):
        report = validate_dataset({split: [bare]}, dataset / "videos", None)
        assert report.num_faults == expected, report
        absent = validate_dataset({split: [replace(bare, windows=[])]}, dataset / "videos", None)
        assert (absent.num_faults, absent.num_absent, absent.without_windows) == (0, 1, 0)


def test_a_video_that_a_decoder_stumbles_over_is_one_fault(dataset, monkeypatch):
    monkeypatch.setattr("calce_jax.video.decode._packets_end", lambda *_: {}["duration"])
    (dataset / "videos/fine.mp4").unlink()
    write_clip(dataset / "videos/fine.mkv", frames=20, rate=2)
    splits = {"train": read_annotations(dataset / "train.jsonl")}
    report = validate_dataset(splits, dataset / "videos", None)
    (fault,) = [fault for fault in report.faults if fault.video == "fine"]
    assert "it cannot be decoded (KeyError: 'duration')" in fault.reason
    assert report.num_videos == 3
    assert report.num_readable == 2
    assert "3 videos, 2 of which can be read, 0.01 hours; the longest is 10.0 s" in report.summary_lines()


def test_videos_that_are_not_there_yet_have_no_hours(dataset):
    splits = {"train": read_annotations(dataset / "train.jsonl")}
    report = validate_dataset(splits, dataset / "not_downloaded", None)
    assert report.num_readable == 0
    assert "3 videos, none of which can be read" in report.summary_lines()
