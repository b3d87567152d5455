"""Output files are there as a whole or not at all."""

import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from calce_jax.checkpoints import params_file
from calce_jax.checkpoints.manager import CheckpointError
from calce_jax.checkpoints.params_file import save_params
from calce_jax.inference.predict_split import write_line
from calce_jax.storage.atomic_files import atomic_replace_dir, atomic_write, find_dir, write_atomic


def test_text_and_bytes_arrive_and_folders_are_made(tmp_path):
    write_atomic(tmp_path / "new/folder/text.json", "é\n")
    write_atomic(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "new/folder/text.json").read_bytes() == "é\n".encode()
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    write_atomic(tmp_path / "bytes", "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bytes", "new"]


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    write_atomic(tmp_path / "file", "before")

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"cannot write .*file \(No space left on device\); make room") as told:
        write_atomic(tmp_path / "file", "after")
    assert told.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "before"


def test_two_that_write_one_file_do_not_mix(tmp_path):
    with atomic_write(tmp_path / "file") as first:
        first.write_text("of the first, which is longer")
        write_atomic(tmp_path / "file", "of the second")
        assert (tmp_path / "file").read_text() == "of the second"
    assert (tmp_path / "file").read_text() == "of the first, which is longer"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_first_error_is_told_when_cleaning_up_fails_too(tmp_path, monkeypatch):
    def failing(number: int):
        def fail(*_, **__):
            raise OSError(number, os.strerror(number))

        return fail

    monkeypatch.setattr(Path, "write_bytes", failing(errno.ENOSPC))
    monkeypatch.setattr(Path, "unlink", failing(errno.EROFS))
    with pytest.raises(OSError, match="No space left on device"):
        write_atomic(tmp_path / "file", "text")


def test_a_folder_that_is_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*file/under \(.*\); make room, or choose another place"):
        write_atomic(tmp_path / "file/under", "text")


def test_a_full_disk_while_answers_are_written_is_told_with_what_to_do():
    told = r"cannot write /dev/full \(No space left on device\); make room and run"
    # The outer error is that of closing: what could not be written is still in the file's buffer.
    with (
        pytest.raises(OSError, match="No space"),
        Path("/dev/full").open("w", encoding="utf-8") as file,
        pytest.raises(OSError, match=told),
    ):
        write_line(file, "{}")


def test_a_folder_is_replaced_when_all_of_it_is_written(tmp_path, monkeypatch):
    for number in (1, 2):
        with atomic_replace_dir(tmp_path / "a/tables") as new:
            (new / f"{number}").touch()
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["tables", "2"]
    with pytest.raises(KeyError), atomic_replace_dir(tmp_path / "a/tables") as new:
        {(new / "3").touch(): 1}["nothing"]
    renames = []

    def second_fails(self, target):
        renames.append(target)
        if len(renames) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    told = r"cannot write .*a/tables \(Input/output error\); make room, or choose another place"
    with pytest.raises(OSError, match=told), atomic_replace_dir(tmp_path / "a/tables"):
        pass
    assert [path.name for path in (tmp_path / "a").rglob("*")] == ["tables", "2"]


def test_what_a_thread_still_writes_after_a_failure_is_removed_too(tmp_path):
    removed = threading.Event()

    def write_late(folder):
        while folder.exists():
            time.sleep(0.001)
        (folder / "checkpoints").mkdir(parents=True)  # as Orbax's writers do, which make what is missing
        removed.set()

    with pytest.raises(KeyError), atomic_replace_dir(tmp_path / "run") as new:
        {threading.Thread(target=write_late, args=(new,)).start(): 1}["nothing"]
    assert removed.wait(5)
    assert list(tmp_path.iterdir()) == []


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("killed_at", range(1, 8))
def test_a_kill_before_any_call_of_the_swap_loses_neither_folder(tmp_path, monkeypatch, before, killed_at):
    """A kill is an exception at a call, after which none does anything."""
    path, calls = tmp_path / "tables", []
    if before:
        with atomic_replace_dir(path) as new:
            (new / "1").touch()

    class KilledError(BaseException):
        pass

    def failpoint(action):
        def call(*arguments, **options):
            calls.append(action)
            if len(calls) >= killed_at:
                raise KilledError
            return action(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        for owner, name in ((Path, "rename"), (Path, "mkdir"), (shutil, "rmtree")):
            patch.setattr(owner, name, failpoint(getattr(owner, name)))
        with suppress(KilledError), atomic_replace_dir(path) as new:
            (new / "2").touch()
    assert files(find_dir(path)) in ([["1"], ["2"]] if before else [[], ["2"]])
    with atomic_replace_dir(path) as new:
        assert not before or files(find_dir(path)), "readable while the next one is written"
        (new / "3").touch()
    assert files(tmp_path) == ["tables/3"]


def test_weights_that_cannot_be_written_leave_what_was_there(tmp_path, monkeypatch):
    save_params(tmp_path / "base.safetensors", {"a": np.zeros(2, np.float32)})
    before = (tmp_path / "base.safetensors").read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/a cannot be written \(.*File exists.*\); make room"):
        save_params(tmp_path / "file/a", {"a": np.ones(2, np.float32)})

    def full(*_):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(params_file, "save_file", full)
    with pytest.raises(CheckpointError, match=r"base\.safetensors cannot be written \(I/O error: No space left"):
        save_params(tmp_path / "base.safetensors", {"a": np.ones(2, np.float32)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.safetensors", "file"]
    assert (tmp_path / "base.safetensors").read_bytes() == before


def killed_while_writing(path: Path) -> None:
    """Write a file in another process, which is killed before it is renamed."""
    program = (
        "import os, signal, sys; from calce_jax.storage.atomic_files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as partial:\n"
        "    partial.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    root = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, env=os.environ | {"PYTHONPATH": root})


def test_the_next_process_removes_what_a_killed_one_has_left(tmp_path):
    killed_while_writing(tmp_path / "film.mp4")
    (leftover,) = tmp_path.iterdir()
    assert leftover.name.endswith(".part")
    mine = [tmp_path / "film.part", tmp_path / "film.mp4.0123abcd-1-0123abcd.part"]
    for path in mine:  # of somebody, and of another host
        path.touch()
    with atomic_write(tmp_path / "film.mp4") as partial_path:
        partial_path.write_text("whole")
        write_atomic(tmp_path / "other", "of the same process, while the first is being written")
    assert sorted(tmp_path.iterdir()) == sorted([*mine, tmp_path / "film.mp4", tmp_path / "other"])


def test_what_a_running_process_writes_stays(tmp_path):
    killed_while_writing(tmp_path / "film.mp4")
    (leftover,) = tmp_path.iterdir()
    host, _, random = leftover.name.removeprefix("film.mp4.").split("-")
    running = leftover.rename(leftover.with_name(f"film.mp4.{host}-{os.getppid()}-{random}"))
    write_atomic(tmp_path / "film.mp4", "whole")
    assert running.exists()
