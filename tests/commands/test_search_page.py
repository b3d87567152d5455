"""docs/search.md: its examples on the samples print what the page shows; it has every flag and format."""

import re
import shutil
import sys
from pathlib import Path

import click
import pytest

import calce_jax
from calce_jax.commands import search
from calce_jax.commands.flags.search import FORMATS
from tests.helpers.page_examples import DOCS, assert_same_output, run_example

PAGE = (DOCS / "search.md").read_text(encoding="utf-8")
EXAMPLE = re.compile(r"^    (calce \w+ samples[^\n]*)\n\n```text\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FLAGS_OF_ALL_COMMANDS = {"verbosity", "verify", "help"}


def test_examples_print_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(Path(calce_jax.__path__[0]) / "assets/tiny/samples", tmp_path / "samples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["search"])
    examples = EXAMPLE.findall(PAGE)
    assert [command.split()[1] for command, _ in examples] == ["search", "search", "cut"]
    for command, shown in examples:
        assert_same_output(run_example("bash", command, {}), shown)
    assert (tmp_path / "found/that-river/index.html").is_file()
    assert (tmp_path / "shapes_test_000001_00-00-02_cut.mp4").is_file()


def test_the_page_has_every_flag_and_format():
    table = PAGE.partition("## Options")[2].partition("## ")[0]
    options = [param for param in search.command.params if isinstance(param, click.Option) and not param.hidden]
    own = {option.opts[0].removeprefix("--") for option in options} - FLAGS_OF_ALL_COMMANDS
    assert "min_score" in own
    assert own <= set(re.findall(r"`--(\w+)", table))
    formats = PAGE.partition("## For other programs")[2].partition("## ")[0]
    assert all(f"`{name}`" in formats for name in FORMATS)
