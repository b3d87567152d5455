"""Ctrl-C at any moment of a command's start and work ends it with one line and exit code 130."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.video_files import write_clip

ROOT = str(Path(__file__).parents[2])
# What comes before is Python's own start, which no program can change.
PROGRAM = "import os, calce_jax.__main__ as program; os.write(1, b'x'); program.main()"

IGNORE = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"


def interrupt(folder: Path, seconds: float, *arguments: str, ignored: bool = False) -> tuple[int, str]:
    """Send SIGINT to a command so many seconds after its start; return its exit code and what it wrote on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-c", (IGNORE if ignored else "") + PROGRAM, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ROOT, "CALCE_CACHE": str(folder / "cache")},
    )
    assert process.stdout is not None
    process.stdout.read(1)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, written = process.communicate(timeout=120)
    return process.returncode, written.decode()


@pytest.mark.slow
@pytest.mark.parametrize("count", [4, pytest.param(20, marks=pytest.mark.release)])
@pytest.mark.parametrize(
    ("arguments", "length"),
    [
        (["train", "--config=shapes,stage=1", "--config.data.directory=none", "--workdir=run"], 2.0),
        (["search", "film.mp4", "a red circle", "--json"], 3.0),
        (["cut", "film.mp4", "0", "600", "--out=cut.mp4"], 0.5),
    ],
)
def test_an_interrupt_at_any_moment_is_one_line(tmp_path, signals_heard, arguments, length, count):
    write_clip(tmp_path / "film.mp4", frames=30, rate=10)
    moments = [0.005 + length * number / count for number in range(count)]
    ends = {}
    for seconds in moments:
        code, written = interrupt(tmp_path, seconds, *arguments)
        if code == 130:
            lines = [line for line in written.splitlines() if not line.startswith("The tiny model")]
            ends[seconds] = lines[-1:], "Traceback" in written
        else:  # it was done before; at its very end Python lets SIGINT end it without a word
            assert (code in (0, 1, -signal.SIGINT), "Traceback" in written) == (True, False), (code, written)
    assert ends[moments[0]], "the first moment is before the end of any command"
    line = "interrupted; run the same command again, it continues where it can"
    assert all(end == ([line], False) for end in ends.values()), ends


def test_the_line_is_not_written_behind_a_bar():
    """Of a search, which imports what writes its page while its bar is shown."""
    code = (
        "import tqdm; from calce_jax.commands.interrupts import end_interrupted\n"
        "bar = tqdm.tqdm(total=2); bar.update(); end_interrupted()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 130
    assert ended.stderr.splitlines()[-1] == "interrupted; run the same command again, it continues where it can"


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full"])
def test_an_interrupt_ends_a_process_that_cannot_say_so(tmp_path, stderr):
    """And the line is not written into the file that has the descriptor of stderr."""
    code = (
        "from calce_jax.commands.interrupts import end_interrupted\n"
        "file = open('other', 'wb', buffering=0); file.write(b'data'); end_interrupted()"
    )
    (tmp_path / "code.py").write_text(code)
    ended = subprocess.run(
        f"{sys.executable} code.py {stderr}",
        shell=True,
        cwd=tmp_path,
        check=False,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    assert ended.returncode == 130
    assert (tmp_path / "other").read_bytes() == b"data"


def assert_ended_in_a_line(program: str, name: str, folder: Path) -> None:
    """Run a program that sends itself a signal; assert that it ends with the signal's code, a line and no output."""
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": ROOT},
    )
    assert (ended.returncode, ended.stdout) == (128 + getattr(signal, name), "")
    assert len(ended.stderr.splitlines()) == 1


NESTED = """
from calce_jax.commands.interrupts import interrupt_ends_process
from calce_jax.commands.runner import exit_codes

interrupt_ends_process()
with exit_codes("calce"), exit_codes("calce search"):
    try:
        import killed
    except BaseException as error:
        print("raised through an import:", repr(error))
"""


@pytest.mark.parametrize(("name", "setting"), [("SIGINT", ""), ("SIGTERM", ""), ("SIGTERM", IGNORE)])
def test_a_signal_ends_a_process_that_is_importing_and_raises_nothing(tmp_path, signals_heard, name, setting):
    """SIGTERM also in the background, where SIGINT is ignored."""
    (tmp_path / "killed.py").write_text(f"import os, signal; os.kill(os.getpid(), signal.{name}); sum(range(10**6))")
    assert_ended_in_a_line(setting + NESTED, name, tmp_path)


LOST = """
import os, signal
from calce_jax.commands.interrupts import interrupt_ends_process
from calce_jax.commands.runner import exit_codes

class Last:
    def __del__(self):
        os.kill(os.getpid(), signal.NAME)
        sum(range(10**6))

interrupt_ends_process()
with exit_codes("calce"):
    del [Last()][0]
    print("went on")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_where_python_drops_errors_ends_the_process(tmp_path, signals_heard, name):
    assert_ended_in_a_line(LOST.replace("NAME", name), name, tmp_path)


@pytest.mark.slow
def test_an_interrupt_that_the_shell_lets_be_ignored_stays_ignored(tmp_path):
    code, written = interrupt(tmp_path, 0.02, "--version", ignored=True)
    assert (code, written) == (0, "")
