"""The examples of a page: run them as typed, and compare what they print with the blocks of output below them."""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import run_script

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+|\d+")
SCORE_TOLERANCE = 0.011  # seconds are whole numbers or tenths, so it lets scores alone differ


def page_examples(page: str) -> list[tuple[str, str, str]]:
    """Return (language, code, output shown below it) of the fenced examples of a page's text."""
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(page)]
    following = [*blocks[1:], ("", "")]
    return [
        (language, code, after if kind == "text" else "")
        for (language, code), (kind, after) in zip(blocks, following, strict=True)
        if language != "text"
    ]


def run_example(language: str, code: str, namespace: dict[str, Any]) -> str:
    """Run an example in this process; return what it printed. Python runs in `namespace`."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if language == "python":
            exec(compile(code, "example.py", "exec"), namespace)
        else:
            program, *words = shlex.split(code.replace("\\\n", " "))
            if program == "calce":
                run_script(*words)
            else:
                assert (program, words[0]) == ("python", "-c")
                exec(compile(words[1], "example.py", "exec"), {})
    return printed.getvalue()


def assert_same_output(printed: str, shown: str) -> None:
    """Compare the lines that the page shows with those printed; numbers may differ by a rounding."""
    lines = [line for line in printed.splitlines() if line and not line.startswith("searched ")]
    expected = [line for line in shown.splitlines() if line and not line.startswith("searched ")]
    assert [NUMBER.sub("#", line) for line in lines] == [NUMBER.sub("#", line) for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        numbers = [list(map(float, NUMBER.findall(text))) for text in (line, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], abs=SCORE_TOLERANCE), f"{line}\n{wanted}"
