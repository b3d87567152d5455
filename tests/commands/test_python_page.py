"""docs/python.md: its examples print what the page shows, one after the other; its reference agrees with the code."""

import importlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import calce_jax
from calce_jax.search.inputs import load_captions
from calce_jax.search.model import Model
from calce_jax.search.moment import Moment
from calce_jax.search.moment_list import EXPORTS, MomentList
from calce_jax.search.speech_index import search_speech
from tests.helpers.page_examples import DOCS, assert_same_output, page_examples, run_example

PAGE = (DOCS / "python.md").read_text(encoding="utf-8")
NAMES = {
    "calce_jax": calce_jax,
    "Model": Model,
    "Moment": Moment,
    "MomentList": MomentList,
    "search_speech": search_speech,
    "load_captions": load_captions,
}


@pytest.mark.release
def test_examples_print_what_the_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALCE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["python"])
    namespace: dict[str, Any] = {}
    shown = page_examples(PAGE)
    assert [language for language, _, _ in shown] == ["bash"] + ["python"] * 11
    for language, code, output in shown:
        printed = run_example(language, code, namespace)
        assert bool(output) == (language == "python"), code
        if output:
            assert_same_output(printed, output)
    for name in ("circle.png", "circle.mp4", "circle_with_handles.mp4", "found/index.html", "found/moments.csv"):
        assert (tmp_path / name).is_file(), name


def reference() -> dict[str, str]:
    """Return the arguments of each name in the table of the reference."""
    rows = re.findall(r"^\| `([\w.]+)` \|(?: `([^`]*)`)? \|", PAGE.partition("## Reference")[2], re.MULTILINE)
    return dict(rows)


def shown_arguments(function: Any) -> str:
    """Return the parameters of a function with their defaults, without annotations and self."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name != "self"
    ]
    return str(inspect.Signature(parameters))[1:-1].replace("'", '"')


def test_the_reference_has_the_arguments_of_the_code():
    rows = reference()
    assert rows.pop("calce_jax.__version__") == ""
    for name, arguments in rows.items():
        owner, _, attribute = name.partition(".")
        function = getattr(NAMES[owner], attribute) if attribute else NAMES[owner]
        assert arguments == shown_arguments(function), name


def test_the_reference_has_every_public_name():
    rows = reference()
    assert {f"calce_jax.{name}" for name in calce_jax.__all__} <= rows.keys()
    for owner in (Model, Moment, MomentList):
        methods = {name for name, value in vars(owner).items() if inspect.isfunction(value) and name[0] != "_"}
        assert {f"{owner.__name__}.{name}" for name in methods} <= rows.keys()
    assert all(f'"{name}"' in PAGE for name in EXPORTS)


def test_the_errors_are_in_their_modules():
    rows = re.findall(r"^\| ((?:`\w+Error`(?:, )?)+) \| ((?:`[\w.]+`(?:, )?)+) \|", PAGE, re.MULTILINE)
    assert len(rows) == 9
    for names, modules in rows:
        known = {name for module in re.findall(r"[\w.]+", modules) for name in vars(importlib.import_module(module))}
        assert set(re.findall(r"\w+", names)) <= known
