"""docs/tutorial.md: its commands run in an empty folder and print what the page shows."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import run_script

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"\d+\.\d+|\d+")
SCORE_TOLERANCE = 0.011  # seconds are whole numbers or tenths, so it lets scores alone differ


def examples() -> list[tuple[str, str, str]]:
    """Return (language, code, output shown below it) of the examples before the section on training."""
    blocks = [(match[1], match[2]) for match in BLOCK.finditer(PAGE.partition("## 6. Train")[0])]
    following = [*blocks[1:], ("", "")]
    return [
        (language, code, after if kind == "text" else "")
        for (language, code), (kind, after) in zip(blocks, following, strict=True)
        if language != "text"
    ]


def run(language: str, code: str) -> str:
    """Run an example in this process; return what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        if language == "python":
            exec(compile(code, "tutorial.md", "exec"), {})
        else:
            program, *words = shlex.split(code.replace("\\\n", " "))
            if program == "calce":
                run_script(*words)
            else:
                assert (program, words[0]) == ("python", "-c")
                exec(compile(words[1], "tutorial.md", "exec"), {})
    return printed.getvalue()


def assert_same(printed: str, shown: str) -> None:
    """Compare the lines that the page shows with those printed; numbers may differ by a rounding."""
    lines = [line for line in printed.splitlines() if line and not line.startswith("searched ")]
    expected = [line for line in shown.splitlines() if line]
    assert [NUMBER.sub("#", line) for line in lines] == [NUMBER.sub("#", line) for line in expected]
    for line, wanted in zip(lines, expected, strict=True):
        numbers = [list(map(float, NUMBER.findall(text))) for text in (line, wanted)]
        assert numbers[0] == pytest.approx(numbers[1], abs=SCORE_TOLERANCE), f"{line}\n{wanted}"


def test_commands_print_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["tutorial"])
    shown = examples()
    assert [language for language, _, _ in shown] == ["bash", "bash", "bash", "bash", "bash", "python"]
    for language, code, output in shown:
        printed = run(language, code)
        if output:
            assert_same(printed, output)
    for name in ("found/index.html", "triangle.mp4", "moments.csv"):
        assert (tmp_path / name).is_file()
