"""Output files are there as a whole or not at all."""

import errno
import os
from pathlib import Path

import pytest

from calce_jax.inference.predict_split import write_line
from calce_jax.storage.atomic_files import atomic_write, write_atomic


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
