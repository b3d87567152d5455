"""A `calce` process starts without collecting garbage, and ends with everything done and written."""

import gc
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from calce_jax.commands.process import garbage_kept
from tests.helpers.video_files import write_clip

PROGRAM = """
import atexit, threading, time
from calce_jax.commands.process import end_process

def work():
    time.sleep(0.2)
    print("thread", end=" ")

class Held:
    def __del__(self):
        print("taken down")

held = Held()
atexit.register(print, "registered", end=" ")
threading.Thread(target=work).start()
print("command", end=" ")
end_process()
"""


def test_a_process_ends_after_its_threads_and_what_is_registered_but_is_not_taken_down():
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("command thread registered ", "")


def test_a_command_without_stdout_ends_as_another():
    root = Path(__file__).parents[2]
    command = f"{sys.executable} -m calce_jax --version >&-"
    done = subprocess.run(command, shell=True, cwd=root, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def type_in_shell(folder: Path, ending: str) -> subprocess.CompletedProcess[str]:
    """Search what is said in a video that has no captions, of which a notice speaks."""
    write_clip(folder / "film.mp4", frames=5, rate=5)
    command = f"{sys.executable} -m calce_jax search film.mp4 zebra --mode=speech --out=found {ending}"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    bash = shutil.which("bash")
    return subprocess.run(
        ["bash", "-c", command], executable=bash, cwd=folder, env=env, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"])
def test_a_search_with_closed_streams_writes_its_files_and_mixes_nothing(tmp_path, closed):
    done = type_in_shell(tmp_path, f"--json {closed}")
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout == ("" if " >&-" in f" {closed}" else "[]\n")
    assert ("has no captions" in done.stderr) == ("2>&-" not in closed)
    assert (tmp_path / "found/index.html").is_file()


@pytest.mark.slow
def test_a_search_whose_reader_has_ended_still_writes_its_files(tmp_path):
    done = type_in_shell(tmp_path, "| true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, "Traceback" in done.stderr) == (128 + signal.SIGPIPE, False)
    assert (tmp_path / "found/index.html").is_file()


@pytest.mark.slow
def test_a_search_that_nobody_reads_leaves_no_empty_folder(tmp_path):
    done = type_in_shell(tmp_path, "2>&1 | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    assert not (tmp_path / "found").exists() or (tmp_path / "found/index.html").is_file()


def test_garbage_is_collected_again_after_the_start_also_after_an_error():
    def fail() -> None:
        with garbage_kept():
            assert not gc.isenabled()
            raise ValueError("import")

    try:
        with pytest.raises(ValueError, match="import"):
            fail()
        assert gc.isenabled()
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()
