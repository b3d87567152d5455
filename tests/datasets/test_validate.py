"""Annotations held against their videos: every fault is named, and nothing is written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from calce_jax.datasets.validate import validate_dataset
from calce_jax.moments.annotations import read_annotations
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
    reasons = {(fault.video, fault.reason.split(":")[0].split(" (")[0]) for fault in found.faults}
    assert len(found.faults) == 6, found.faults
    by_video = {video: [fault.reason for fault in found.faults if fault.video == video] for video, _ in reasons}
    assert by_video["both"] == ["it is in train and in val"]
    assert "there is no" in by_video["gone"][0]
    assert by_video["late"][:2] == [
        "query train_late: annotated with 20 s, but the file has 10.0 s",
        "query train_late: window [12, 14] begins after the video's end at 10.00 s",
    ]
    assert "late.srt, line 2" in by_video["late"][2]
    assert "1 captions in" in by_video["fine"][0]
    assert all(fault.remedy for fault in found.faults)
    assert (found.num_videos, found.num_windows, found.without_items) == (4, 5, 5)
    assert found.max_duration == pytest.approx(10.0)


def test_the_command_tells_and_writes_nothing(dataset):
    before = sorted(dataset.rglob("*"))
    given = [f"--videos={dataset}/videos", "--dataset=shapes", "--check"]
    given += [f"--annotations=train={dataset}/train.jsonl,val={dataset}/val.jsonl"]
    command = [sys.executable, str(ROOT / "launch/prepare.py"), *given]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=300)
    assert done.returncode == 1
    assert "4 videos, 0.01 hours" in done.stdout
    assert "it is in train and in val" in done.stdout
    assert "Traceback" not in done.stderr
    assert sorted(dataset.rglob("*")) == before


def test_windows_without_length_and_beyond_the_video_are_counted_and_named(tmp_path):
    write_clip(tmp_path / "videos/a.mp4", frames=20, rate=2)
    lines = ["a 1.0 4.0##A cat.", "a 5.0 5.0##A dog.", "a 8.0 27.0##A fox.", "a 8.0 10.9##A hen."]
    (tmp_path / "charades_sta_test.txt").write_text("\n".join(lines))
    splits = {"test": read_annotations(tmp_path / "charades_sta_test.txt")}
    report = validate_dataset(splits, tmp_path / "videos", None)
    assert not report.faults
    assert report.summary_lines()[-3:] == [
        "1 queries have a window of no length, which no answer can meet: charades_sta_test_2",
        "1 queries have a window that ends more than a second after its video: charades_sta_test_3",
        "0 faults",
    ]


def test_a_video_that_a_decoder_stumbles_over_is_one_fault(dataset, monkeypatch):
    monkeypatch.setattr("calce_jax.video.decode._packets_end", lambda *_: {}["duration"])
    (dataset / "videos/fine.mp4").unlink()
    write_clip(dataset / "videos/fine.mkv", frames=20, rate=2)
    splits = {"train": read_annotations(dataset / "train.jsonl")}
    report = validate_dataset(splits, dataset / "videos", None)
    (fault,) = [fault for fault in report.faults if fault.video == "fine"]
    assert "it cannot be decoded (KeyError: 'duration')" in fault.reason
    assert report.num_videos == 3
