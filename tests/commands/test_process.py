"""A `calce` process starts without collecting garbage, and ends with everything done and written."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

from calce_jax.commands.process import garbage_kept

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
