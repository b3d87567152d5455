"""`calce models`, `calce push` and --checkpoint=NAME: what they print and ask, without a network."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from calce_jax.datasets.sources import MODELS
from calce_jax.search.published import install
from tests.commands.test_help import HEAVY
from tests.helpers.commands import run_script

VIDEO = Path(__file__).parents[2] / "calce_jax/assets/tiny/samples/shapes_test_000000.mp4"


@pytest.fixture
def models_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("CALCE_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def put_model(folder: Path, size: int = 1000) -> Path:
    """Write what looks like a model of both stages."""
    for stage in ("stage1", "stage2"):
        (folder / stage).mkdir(parents=True)
        (folder / stage / "config.json").write_text(" " * size)
    return folder


def test_models_are_listed(models_dir, capsys):
    run_script("models")
    printed = capsys.readouterr().out
    assert printed.count("not here") == len(MODELS) == 2
    assert "download  about 17.7 GB, 8.3 GB once it is converted" in printed
    assert (
        "from      Google Drive, google-bert/bert-base-uncased, Salesforce/blip2-flan-t5-xl, google/flan-t5-xl"
        in printed
    )
    assert "their repository states the terms" in printed
    put_model(models_dir / "calce-qvh")
    put_model(models_dir / "someone--tiny")
    (models_dir / "calce-charades.downloads").mkdir()
    (models_dir / "calce-charades.downloads/file").write_text(" " * 3000)
    run_script("models")
    printed = capsys.readouterr().out
    assert (
        f"calce-qvh: CALCE by its authors, both stages, trained on QVHighlights\n  here      2 kB in {models_dir}"
        in printed
    )
    assert "trained on Charades-STA\n  here      3 kB of it fetched" in printed
    assert "hf:someone/tiny: a model of the Hugging Face hub" in printed
    run_script("models", "--json")
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows.keys() == {*MODELS, "hf:someone/tiny"}
    assert rows["calce-qvh"]["folder"] == str(models_dir / "calce-qvh")
    assert (rows["calce-qvh"]["complete"], rows["calce-qvh"]["bytes"]) == (True, 2000)
    assert (rows["calce-charades"]["complete"], rows["calce-charades"]["bytes"]) == (False, 3000)
    assert rows["hf:someone/tiny"]["download_bytes"] is None


def test_a_model_is_removed(models_dir, capsys):
    put_model(models_dir / "calce-qvh")
    put_model(models_dir / "someone--tiny")
    run_script("models", "--remove=calce-qvh")
    assert capsys.readouterr().out == "removed calce-qvh: 2 kB\n"
    assert {path.name for path in models_dir.iterdir()} == {"someone--tiny"}
    for name, message in (
        ("calce-qvh", "calce-qvh is not in .*`calce models` lists"),
        ("x", "'x': no such model; choose"),
    ):
        with pytest.raises(SystemExit, match=message):
            run_script("models", f"--remove={name}")


def test_listing_imports_nothing_heavy(models_dir):
    script = (
        "import sys; from calce_jax.commands.cli import main; main(['models']); "
        f"print([name for name in {(*HEAVY, 'huggingface_hub', 'gdown')} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


class Terminal(io.StringIO):
    """An input that a person types."""

    def isatty(self):
        return True


@pytest.mark.parametrize("command", [["search", str(VIDEO), "a red circle", "--json"], ["web"]])
def test_a_person_is_asked(models_dir, tmp_path, monkeypatch, capsys, command):
    fetched = []
    monkeypatch.setattr(install, "_check_can_install", lambda offer: None)
    monkeypatch.setattr(install, "_install", lambda name, paths, keep, log: fetched.append(name) or sys.exit("fetched"))
    arguments = [*command, "--checkpoint=calce-charades"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))  # a pipe is not asked
    with pytest.raises(SystemExit, match=r"calce-charades is not in .* would be downloaded .*--yes on the command"):
        run_script(*arguments)
    for answer in ("", "n\n", "whatever\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        with pytest.raises(SystemExit, match="calce-charades was not downloaded"):
            run_script(*arguments)
    assert fetched == []
    asked = capsys.readouterr()
    assert asked.out == ""
    assert "about 17.7 GB" in asked.err
    assert asked.err.rstrip().endswith("Download it? [y/N]")
    monkeypatch.setattr(sys, "stdin", Terminal("Yes\n"))
    with pytest.raises(SystemExit, match="fetched"):
        run_script(*arguments)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(SystemExit, match="fetched"):
        run_script(*arguments, "--yes", f"--models_dir={tmp_path / 'other'}")
    assert fetched == ["calce-charades"] * 2
    assert not models_dir.exists() or not list(models_dir.glob("*.lock"))


def test_push_needs_a_folder_and_a_name(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_script("push", tmp_path)
    assert "give a folder and a repository: calce push runs/demo owner/name" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="no trained run in"):
        run_script("push", tmp_path, "someone/tiny")
