"""The docs: commands that parse, fields that exist, links that lead somewhere, and a menu with every page."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from calce_jax.config import field_names
from tests.helpers.commands import run_script
from tests.helpers.documented_commands import PAGES, ROOT, Command, check_command, code_lines, commands

# Which test runs a program, on data that it makes; the full-size data of the docs are nobody's to ship.
RUN_BY = {
    "cache_features": "test_features.py",
    "caption": "test_caption.py",
    "convert": "test_docs.py",
    "evaluate": "test_commands.py",
    "fetch": "test_fetch.py",
    "infer": "test_commands.py",
    "merge": "test_commands.py",
    "prepare": "test_commands.py",
    "search": "test_commands.py",
    "train": "test_commands.py",
    "web": "test_web.py",
}
MAKES_IT_ITSELF = {"demo", "aot", "make_base"}  # `make demo`, `make aot` and `make base`


# ml_collections loads configs in an old way.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize("command", list(commands()), ids=str)
def test_commands_parse(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    try:
        check_command(command)
    except ImportError as error:
        pytest.skip(f"{error.name} is absent")


def test_every_script_is_run_by_a_test_or_by_make():
    scripts = {path.stem for path in (ROOT / "launch").glob("*.py") if "app.run(" in path.read_text(encoding="utf-8")}
    assert scripts == RUN_BY.keys() | MAKES_IT_ITSELF
    for name, test in RUN_BY.items():
        text = (ROOT / "tests" / test).read_text(encoding="utf-8")
        assert re.search(rf'(\w\(|, |^ +)"{name}",|script\("{name}"\)|launch/{name}\.py', text, re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_of_the_config_exist(page: Path):
    named = set(re.findall(r"\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", page.read_text(encoding="utf-8")))
    groups = {name.rpartition(".")[0] for name in field_names()}
    assert named - {"json", "py", "field"} <= {*field_names(), *groups}


def anchors(page: str) -> set[str]:
    """Return the places of a page that a link may name, as GitHub and MkDocs make them."""
    in_code = {number for number, _ in code_lines(page)}
    found = set()
    for number, line in enumerate(page.splitlines(), 1):
        if number not in in_code and (heading := re.match(r"#+ (.*)", line)):
            words = re.sub(r"[^\w\- ]", "", heading[1].lower()).strip()
            found |= {words.replace(" ", "-"), re.sub(r"[-\s]+", "-", words)}
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, place = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not place or place in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_in_the_menu_once():
    menu = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(menu) == sorted(page.name for page in PAGES if page.parent.name == "docs")


def test_fifteen_troubles():
    text = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\*\*(\d+)\.", text, re.MULTILINE)] == list(range(1, 16))


def test_the_pages_build(tmp_path: Path):
    pytest.importorskip("material", reason="mkdocs-material is absent: pip install -e '.[docs]'")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/search/index.html").is_file()


def test_weights_are_converted_as_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    base = ROOT / "calce_jax/assets/tiny/base.safetensors"
    tiny = ("--size=tiny", "--run=shapes")
    run_script("convert", f"--source=base:{base}", f"--target=base:{tmp_path / 'again.safetensors'}", *tiny)
    assert str(tmp_path / "again.safetensors") in capsys.readouterr().out
    before, after = load_file(base), load_file(tmp_path / "again.safetensors")
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    with pytest.raises(SystemExit, match=r"^ValueError: --source: 'nothing:x' is none of"):
        run_script("convert", "--source=nothing:x", f"--target=base:{tmp_path / 'b.safetensors'}", *tiny)


def test_calce_says_what_there_is():
    calce = Path(sys.executable).with_name("calce")
    if not calce.exists():
        pytest.skip("calce is not installed: pip install -e .")
    for arguments in ([], ["nothing"]):
        done = subprocess.run([calce, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
        told = done.stderr if arguments else done.stdout
        assert (done.returncode, told.count("search")) == ((1, 1) if arguments else (0, 2)), told
