"""docs/moments.ipynb: committed without outputs; its cells run one after the other and show what they should."""

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image

from calce_jax.search.moment_list import MomentList
from tests.helpers.page_examples import DOCS

NOTEBOOK = json.loads((DOCS / "moments.ipynb").read_text(encoding="utf-8"))
CODE = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def run_cell(source: str, namespace: dict[str, Any]) -> tuple[str, Any]:
    """Execute a cell as Jupyter does; return what it printed, and the value of its last line if that is one."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, "cell.py", "exec"), namespace)
        is_value = isinstance(last, ast.Expr)
        value = eval(compile(ast.Expression(last.value), "cell.py", "eval"), namespace) if is_value else None
    return printed.getvalue(), value


def test_it_is_committed_without_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in cells)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


def test_it_is_linked():
    for page in (DOCS / "python.md", DOCS.parent / "README.md"):
        assert "moments.ipynb)" in page.read_text(encoding="utf-8"), page


@pytest.mark.release
def test_its_cells_show_what_they_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CALCE_CACHE", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {}
    (_, names), (_, moments), (clip, image), (many, _), (words, _), (library, _), (_, scores) = [
        run_cell(source, namespace) for source in CODE
    ]
    assert names == ["shapes_test_000000.mp4", "shapes_test_000001.mp4"]
    assert isinstance(moments, MomentList)
    assert len(re.findall(r"data:image/jpeg;base64", moments._repr_html_())) == len(moments) == 4
    assert clip.splitlines()[1] == "circle.mp4 0.0 12.0"
    assert isinstance(image, Image.Image)
    with av.open("circle.mp4") as container:
        assert (container.duration or 0) / av.time_base == pytest.approx(12, abs=0.3)
    assert [line.split("  ")[1] for line in many.splitlines()] == ["00:02.0 - 00:12.0", "00:11.0 - 00:16.0"]
    assert words.splitlines()[0].startswith("shapes_test_000000.mp4  0.0 - 7.0  1.000  my sister still dreams")
    assert library.splitlines()[:2] == ["2 videos added", "shapes_test_000001.mp4  11.0 - 16.0  1.000"]
    assert scores["R1@0.5"] == 100
    assert {path.name for path in tmp_path.iterdir()} == {"cache", "circle.mp4", "library.sqlite", "predictions.jsonl"}
