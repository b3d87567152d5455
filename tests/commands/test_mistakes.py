"""What people type wrongly, and what they are told: what, where, what to do, in lines without a traceback.

Rows that other tests hold:
  a sentence as an argument: test_search_command.py::test_a_sentence_is_an_argument_and_the_folder_has_a_name
  old names of presets, configs/calce.py away from a checkout:
    test_errors.py::test_an_old_name_is_accepted_and_the_new_one_is_told
  a field of a config that is no number: test_errors.py::test_a_wrong_command_line_exits_with_2
  stage 2 without windows of stage 1: training/test_run_data.py::test_stage_2_needs_tables_with_windows_of_stage_1
  a run that is finished, and goes on: training/test_run.py::test_a_run_stops_goes_on_and_starts_another_stage
  Ctrl-C: test_interrupts.py
  an extra that is not installed: storage/test_extras.py
  a full disk: robustness/test_full_disk.py
"""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import av
import pytest

from calce_jax.commands.cli import main
from tests.helpers.audio_files import tone, write_audio
from tests.helpers.commands import run_script, unchanged_process
from tests.helpers.video_files import write_clip

ROOT = Path(__file__).parents[2]
SRT = "1\n{},000 --> {},500\nwe look at the river\n"
ROW = {"query": "A cat.", "vid": "one", "duration": 3, "relevant_windows": [[0, 1]]}
ANNOTATIONS = ["--dataset=shapes", "--videos=.", "--annotations=train=typo.jsonl", "--check"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with three videos, files of sound, captions and annotations, in which a command runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALCE_CACHE", str(tmp_path / "cache"))
    for name in ("one", "two", "three"):
        write_clip(tmp_path / f"films/{name}.mp4", frames=30, rate=10)
    write_audio(tmp_path / "song.mp3", tone(1, 16000), rate=16000, codec="libmp3lame")
    write_audio(tmp_path / "song.wav", tone(1, 16000), rate=16000)
    write_audio(tmp_path / "song.mp4", tone(1, 16000), rate=16000, codec="aac")
    (tmp_path / "srts").mkdir()
    for name in ("one", "two"):
        (tmp_path / f"srts/{name}.srt").write_text(SRT.format("00:00:00", "00:00:01"))
    write_clip(tmp_path / "late/film.mp4", frames=30, rate=10)
    (tmp_path / "late/film.srt").write_text(SRT.format("00:10:00", "00:10:01"))
    rows = [ROW | {"qid": qid} for qid in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows[2]["relevant_window"] = rows[2].pop("relevant_windows")
    (tmp_path / "typo.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prediction = {"qid": 77, "query": "x", "vid": "y", "pred_relevant_windows": [[0, 1, 0.5]]}
    (tmp_path / "others.jsonl").write_text(json.dumps(prediction) + "\n")
    return tmp_path


def type_line(capsys, *arguments: str) -> tuple[int, str]:
    """Run a command line; return its exit code, and everything that it printed."""
    try:
        if arguments[0].startswith("-") or arguments[0] == "serach":
            with unchanged_process():
                main(list(arguments))
        else:
            run_script(*arguments)
        code, message = 0, ""
    except SystemExit as error:
        is_message = isinstance(error.code, str)
        code, message = (1, str(error.code)) if is_message else (int(error.code or 0), "")
    printed = capsys.readouterr()
    return code, printed.out + printed.err + message


SOUND = "{}: it holds sound and no picture; `calce caption` writes down what is said in it"
MERGE = ["--predictions=others.jsonl", "--annotations=rows.jsonl", "--out=out.jsonl"]


@pytest.mark.parametrize(
    ("line", "code", "told"),
    [
        (
            ["search"],
            2,
            "calce search: no video; give files, or folders of videos\n"
            'Usage: calce search [OPTIONS] VIDEO... "SENTENCE"...\nExample: calce search holiday.mp4 "a dog',
        ),
        (["serach"], 2, "calce: No such command 'serach'. Did you mean 'search'?"),
        (["--version"], 0, "calce_jax "),
        (["search", "song.mp3", "x", "--mode=speech"], 1, SOUND.format("song.mp3")),
        (["search", "song.mp4", "x", "--mode=speech"], 1, SOUND.format("song.mp4")),
        (["cut", "song.wav", "0", "1"], 1, SOUND.format("song.wav")),
        (["index", "song.mp3", "--library_file=l.sqlite"], 1, "it holds sound and no picture  `calce caption`"),
        (
            ["search", "films", "river", "--mode=speech", "--srt=srts", "--out=out"],
            0,
            "films/three.mp4: srts/three.srt: no such file of captions; it is searched without captions",
        ),
        (["search", "films", "river", "--mode=speech", "--srt=srts", "--out=out"], 0, "searched 3 of 3 videos"),
        (
            ["search", "late", "river", "--mode=speech", "--out=out"],
            0,
            "late/film.mp4: its captions begin at 10:00.0, and it ends at 00:03.0; they are not used: are they those "
            "of another video?",
        ),
        (["prepare", *ANNOTATIONS], 1, "typo.jsonl, line 3, relevant_window: there is no such field; did you mean rel"),
        (
            ["merge", *MERGE],
            1,
            "none of the 1 predictions is for one of the 3 annotated queries: predictions have qid 77",
        ),
        (
            ["evaluate", *MERGE],
            1,
            "none of the 1 predictions is for one of the 3 annotated queries: predictions have qid",
        ),
        (
            ["train", "--config=qvhighlights,stage=1", "--workdir=run"],
            1,
            "config.weights.base: no file weights/full.safetensors; fetch them (`calce fetch --what=blip2` and `--",
        ),
        (
            ["train", "--config=qvhighlights,stage=1,size=small", "--workdir=run"],
            1,
            "weights/tokenizers/t5: no tokenizer.json and no spiece.model in this folder; copy the tokenizer's files",
        ),
        (["train", "--config=configs/calce.py:shapes", "--config.data.directory=x", "--workdir=r"], 1, "are no tables"),
    ],
)
def test_a_mistake_is_told(folder, capsys, line, code, told):
    got, printed = type_line(capsys, *line)
    assert told in printed
    assert got == code
    assert "Traceback" not in printed
    assert "Error:" not in printed.replace("\nError: ", "").removeprefix("Error: ")


@pytest.mark.parametrize(
    "line", [["search", "films/one.mp4", "x", "--mode=speech"], ["cut", "films/one.mp4", "0", "1"]]
)
def test_a_file_that_one_may_not_read(folder, capsys, monkeypatch, line):
    def refuse(*_, **__):
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)  # root may read everything
    code, printed = type_line(capsys, *line)
    assert code == 1
    assert "films/one.mp4: you may not read it; change its permissions, or those of its folder" in printed


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (["train", "--config=shapes", "--workdir=own/run"], "--workdir="),
        (["merge", *MERGE[:2], "--out=own/run"], "--out="),
        (["caption", "--videos=films", "--model=tiny", "--out=own/run"], "--out="),
    ],
)
def test_a_folder_that_one_may_not_write(folder, capsys, monkeypatch, line, flag):
    (folder / "own").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "own" and access(path, mode))
    code, printed = type_line(capsys, *line)
    assert (code, f"{flag}own/run: you may not write there; choose another" in printed) == (2, True)


@pytest.mark.slow
def test_a_batch_larger_than_the_split_names_the_field(folder, capsys):
    files = "--annotations=train=rows.jsonl,val=rows.jsonl"
    run_script("prepare", "--dataset=shapes", "--videos=films", files, "--out=prepared", "--frames=10")
    capsys.readouterr()
    code, printed = type_line(capsys, "train", "--config=shapes", "--config.data.directory=prepared", "--workdir=run")
    assert code == 1
    assert "split train of prepared has 3 queries, too few for a batch of 8; lower config.data.batch" in printed


@pytest.mark.parametrize("arguments", [["--help"], ["search", "--help"], ["train", "--help"], ["config", "shapes"]])
def test_a_pipe_that_is_closed_is_silent(arguments):
    program = [sys.executable, "-m", "calce_jax", *arguments]
    with subprocess.Popen(
        program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""


class Unread(io.StringIO):
    """A pipe whose reader has ended."""

    def __init__(self, path: Path):
        super().__init__()
        self._file = path.open("wb")

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        self._file.close()
        super().close()

    def write(self, text: str) -> int:
        if text:
            raise BrokenPipeError
        return 0


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        (["evaluate", "--out=new.json", "--submission=new.jsonl", "--split=val"], ["new.json", "new.jsonl"]),
        (["merge", "--out=new.jsonl"], ["new.jsonl", "new.unmatched.json"]),
    ],
)
def test_a_command_whose_reader_has_ended_has_written_its_files(tmp_path, monkeypatch, arguments, files):
    monkeypatch.chdir(tmp_path)
    rows = [ROW | {"qid": qid} for qid in range(8)]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = [row | {"pred_relevant_windows": [[0, 1, 0.5]]} for row in rows]
    used = predictions if arguments[0] == "evaluate" else predictions[:1]
    Path("predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in used))
    with (
        Unread(tmp_path / "pipe") as unread,
        patch.object(sys, "stdout", unread),
        pytest.raises(SystemExit) as ended,
    ):
        run_script(*arguments, "--predictions=predictions.jsonl", "--annotations=rows.jsonl")
    assert ended.value.code == 128 + signal.SIGPIPE
    assert [name for name in files if Path(name).is_file()] == files


@pytest.mark.slow
@pytest.mark.parametrize("command", ["cut", "evaluate", "merge"])
def test_what_a_killed_command_has_left_is_removed_by_the_next(folder, command):
    line = {
        "cut": ["cut", "films/one.mp4", "0", "1", "--out=out/new.mp4"],
        "evaluate": ["evaluate", "--predictions=rows.json", "--annotations=rows.jsonl", "--out=out/new.json"],
        "merge": ["merge", "--predictions=rows.json", "--annotations=rows.jsonl", "--out=out/new.jsonl"],
    }[command]
    predictions = [{"qid": 0, "query": "A cat.", "vid": "one", "pred_relevant_windows": [[0, 1, 0.5]]}]
    (folder / "rows.json").write_text(json.dumps(predictions[0]) + "\n")
    # Killed where the file is complete under its other name.
    kill = "import os; os.replace = lambda *_: os.kill(os.getpid(), 9); from calce_jax.__main__ import main; main()"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", kill, *line], capture_output=True, check=False, env=environment)
    assert done.returncode == -9
    (leftover,) = (folder / "out").iterdir()
    assert leftover.suffix == ".part"
    subprocess.run([sys.executable, "-m", "calce_jax", *line], capture_output=True, check=True, env=environment)
    assert [path.name for path in (folder / "out").iterdir()] == [line[-1].removeprefix("--out=out/")]
