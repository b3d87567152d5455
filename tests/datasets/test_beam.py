"""Pipelines make the same files as one machine. They run where Apache Beam is, which `make beam` sees to."""

import importlib.util
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from calce_jax.input_pipeline.dataset import open_dataset
from tests.helpers.audio_files import tone, write_audio
from tests.helpers.video_files import write_clip

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("apache_beam") is None,
        reason="Apache Beam is not installed here; `make beam` runs these",
    ),
    # The protobuf that Beam wants calls old what TFDS asks of it.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
ROOT = Path(__file__).parents[2]
PROCESSES = ("--runner=DirectRunner", "--", "--direct_num_workers=2", "--direct_running_mode=multi_processing")


def run(*command, rc=0):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == rc, done.stdout + done.stderr
    return done.stdout


def contents(folder):
    """Every file but the tables' records, whose bytes differ between any two writings of the same rows."""
    files = (path for path in folder.rglob("*") if path.is_file() and "array_record" not in path.name)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture
def films(tmp_path):
    for number in range(5):
        write_clip(tmp_path / "films" / f"v{number}.mp4", frames=20 + number, rate=10)
        (tmp_path / "films" / f"v{number}.srt").write_text("1\n00:00:00,500 --> 00:00:01,250\nA lighthouse!\n")
    (tmp_path / "films" / "v5.mp4").write_bytes(b"no video")
    (tmp_path / "films" / "v5.srt").touch()
    row = {"query": "A red circle stays.", "items": ["A red circle"], "duration": 2, "relevant_windows": [[0.5, 2]]}
    rows = [{"qid": number, "vid": f"v{number}", **row} for number in range(7)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "films"


def test_prepared_by_several_processes_as_by_one(films, tmp_path):
    flags = ("--dataset=qvhighlights", f"--videos={films}", f"--srts={films}", "--frames=6", "--image_size=32")
    flags = ("launch/prepare.py", *flags, f"--annotations={tmp_path}/train.jsonl")
    alone = run(*flags, f"--out={tmp_path}/one", "--workers=1")
    assert "5 videos are ready, 5 of them decoded now" in alone
    told = run(*flags, f"--out={tmp_path}/many", *PROCESSES)
    assert told == alone.replace(f"{tmp_path}/one", f"{tmp_path}/many")
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    failures = (tmp_path / "many/failures.jsonl").read_text().splitlines()
    assert [json.loads(line)["video"] for line in failures] == ["v5", "v6"]
    many, one = (list(open_dataset(tmp_path / out, "train")) for out in ("many", "one"))
    assert len(many) == 5
    assert str(many) == str(one)

    # The other goes on where one stopped, whichever way it is done.
    (tmp_path / "many/videos/v2.npz").unlink()
    assert "5 videos are ready, 1 of them decoded now" in run(*flags, f"--out={tmp_path}/many", *PROCESSES)
    assert contents(tmp_path / "many") == contents(tmp_path / "one")


def test_captioned_by_several_processes_as_by_one(shared, tmp_path):
    spoken = tmp_path / "spoken"
    spoken.mkdir()
    shutil.copy(shared / "media/speech/jfk.flac", spoken / "kennedy.flac")
    write_audio(spoken / "tone.wav", tone(2, 16000), rate=16000)
    (spoken / "broken.mp4").write_bytes(b"no video")
    flags = ("launch/caption.py", f"--videos={spoken}", f"--model={shared}/weights/whisper-tiny.en", "--batch_size=1")
    alone = run(*flags, f"--out={tmp_path}/one")
    told = run(*flags, f"--out={tmp_path}/many", *PROCESSES)
    assert told == alone.replace(f"{tmp_path}/one", f"{tmp_path}/many")
    assert "2 files of captions written" in told
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert "country" in (tmp_path / "many/kennedy.srt").read_text()


@pytest.mark.filterwarnings("default")
def test_a_share_is_tried_again(monkeypatch):
    from calce_jax.datasets import beam  # noqa: PLC0415

    monkeypatch.setattr(beam, "RETRY_DELAY_S", 0.0)
    tries = []

    def attempt(good):
        tries.append(len(tries))
        if len(tries) < good:
            raise OSError("the disk does not answer")
        return "done"

    assert beam.with_retries(lambda: attempt(3)) == "done"
    tries.clear()
    with pytest.raises(OSError, match="does not answer"):
        beam.with_retries(lambda: attempt(4))
    assert len(tries) == 3


def test_a_library_is_looked_at_by_several_processes_as_by_one(films, tmp_path):
    flags = ("launch/index.py", str(films), "--picture", f"--cache={tmp_path}/cache")
    run(*flags, f"--library_file={tmp_path}/one/library.sqlite")
    told = run(*flags, f"--library_file={tmp_path}/many/library.sqlite", *PROCESSES)
    assert "5 added, 5 looked at, 1 failed" in told

    def segments(folder):
        with closing(sqlite3.connect(tmp_path / folder / "library.sqlite")) as database:
            return database.execute("SELECT * FROM segments ORDER BY content, start").fetchall()

    assert len(segments("one")) == 5
    assert segments("many") == segments("one")
    assert not (tmp_path / "many/beam.part").exists()
    assert "5 unchanged" in run(*flags, f"--library_file={tmp_path}/many/library.sqlite", *PROCESSES)
