"""What a shell is offered, asked for as the scripts of `calce completion` do; no command runs for it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from calce_jax.commands.cli import COMMANDS, calce
from calce_jax.commands.completion import COMPLETION_VARIABLE, PROGRAM
from tests.helpers.commands import run_script

CLASSES = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


def candidates(*words):
    """Return (type, value) of what completes the last of the words after `calce`."""
    completion = BashComplete(calce, {}, PROGRAM, COMPLETION_VARIABLE)
    return [(item.type, item.value) for item in completion.get_completions(list(words[:-1]), words[-1])]


def test_commands():
    assert candidates("") == [("plain", name) for name in COMMANDS]
    assert candidates("c") == [("plain", name) for name in COMMANDS if name.startswith("c")]
    assert candidates("--ver") == [("plain", "--version")]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["search", "--min"], [("plain", "--min_score")]),
        (["search", "--cli"], [("plain", "--clips")]),
        (["search", "--nocli"], [("plain", "--noclips")]),
        (["search", "--mode", "s"], [("plain", "speech")]),
        (["search", "--mode=s"], [("plain", "speech")]),
        (["search", "--mode", "=", "s"], [("file", "s")]),  # of bash, see docs/install.md
        (["search", "--export", "csv,e"], [("plain", "csv,edl")]),
        (["search", "--out", "fo"], [("dir", "fo")]),
        (["search", "--annotations", ""], [("file", "")]),
        (["search", "film"], [("file", "film")]),
        (["index", ""], [("file", "")]),
        (["fetch", "--what", "be"], [("plain", "bert")]),
        (["completion", "z"], [("plain", "zsh")]),
        (["infer", "--split", "v"], [("plain", "val")]),
        (["infer", "--workd"], [("plain", "--workdir")]),
        (["cache-features", "--of", "q"], [("plain", "qformer")]),
    ],
)
def test_options_and_their_values(words, wanted):
    assert candidates(*words) == wanted


@pytest.mark.parametrize("shell", CLASSES)
def test_the_script_is_that_of_click(shell, capsys):
    run_script("completion", shell)
    printed = capsys.readouterr().out
    assert printed == CLASSES[shell](calce, {}, PROGRAM, COMPLETION_VARIABLE).source()
    assert f"{COMPLETION_VARIABLE}={shell}_complete" in printed


def test_bash_completes_a_line(tmp_path: Path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    (tmp_path / "calce").write_text(f'#!/bin/sh\nexec {sys.executable} -m calce_jax.commands.cli "$@"\n')
    (tmp_path / "calce").chmod(0o755)
    script = (
        'eval "$(calce completion bash)"; COMP_WORDS=(calce search --mode sp); COMP_CWORD=3; '
        '_calce_completion calce; echo "${COMPREPLY[@]}"'
    )
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "speech\n", done.stderr
