"""The docs: commands parse, fields of the config and targets of links exist, every page is in the menu."""

import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest
from absl import flags
from safetensors.numpy import load_file

from calce_jax import config
from calce_jax.commands.cli import COMMANDS
from calce_jax.config import field_names
from calce_jax.errors import UserError
from tests.helpers.commands import run_script
from tests.helpers.documented_commands import PAGES, ROOT, check_command, code_lines, help_commands, page_commands

# Benchmarks compare with these, which are in no extra that the tests need.
OPTIONAL_PACKAGES = {"torch", "faster_whisper", "jiwer", "peft"}


@pytest.mark.parametrize("page", [*PAGES, None], ids=lambda page: page.name if page else "help")
def test_commands_parse(page: Path | None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    errors = []
    for command in page_commands(page) if page else help_commands():
        try:
            check_command(command)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL_PACKAGES:
                errors.append(f"{command}: {error!r}")
        except (AssertionError, SystemExit, flags.Error, click.ClickException, UserError) as error:
            errors.append(f"{command}: {error!r}")
    assert not errors, "\n".join(errors)


def test_every_command_has_a_script_and_a_test_that_runs_it():
    scripts = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "launch").glob("[a-z]*.py")}
    assert scripts.keys() == COMMANDS.keys() | {"demo"}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))
    for name in COMMANDS:
        assert f'launch("{name}")' in scripts[name]
        assert re.search(rf'(run_script[(,]|step\([^,]+,)\s*"{name}"|"launch/{name}\.py"', tests), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fields_of_the_config_exist(page: Path):
    named = set(re.findall(r"\bconfig\.([a-z_0-9]+(?:\.[a-z_0-9]+)*)", page.read_text(encoding="utf-8")))
    groups = {name.rpartition(".")[0] for name in field_names()}
    assert named - {"json", "py", "field", *vars(config)} <= {*field_names(), *groups}


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
    with pytest.raises(SystemExit, match=r"^2$"):
        run_script("convert", "--source=nothing:x", f"--target=base:{tmp_path / 'b.safetensors'}", *tiny)
    assert "--source: must be one of the following, got 'nothing:x'" in capsys.readouterr().err


def test_training_commands_of_the_readme_read_the_folder_that_it_prepares():
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [line for line in text.splitlines() if line.startswith("    calce train --config=shapes")]
    assert len(commands) == 2
    assert all(" --config.data.directory=runs/prepared/shapes " in command for command in commands), commands
