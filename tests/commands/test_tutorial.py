"""docs/tutorial.md: its commands run in an empty folder and print what the page shows."""

import sys
from pathlib import Path

import pytest

from tests.helpers.page_examples import DOCS, assert_same_output, page_examples, run_example

pytestmark = pytest.mark.release

PAGE = (DOCS / "tutorial.md").read_text(encoding="utf-8")


def test_commands_print_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["tutorial"])
    shown = page_examples(PAGE.partition("## 7. Train")[0])
    assert [language for language, _, _ in shown] == ["bash"] * 7 + ["python"]
    for language, code, output in shown:
        printed = run_example(language, code, {})
        if output:
            assert_same_output(printed, output)
    for name in ("found/index.html", "train/moments.csv", "train.mp4", "triangle.mp4", "moments.csv"):
        assert (tmp_path / name).is_file(), name
