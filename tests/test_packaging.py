"""The wheel and the sdist: one package, with its assets, that works from an empty folder."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import venv
import zipfile
from pathlib import Path

import pytest

from calce_jax.search.samples import load_samples
from data.shapes.write import write_shapes
from tests.helpers.commands import xla_test_flags

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
# Names that a user's own files may have.
STRANGERS = ("data.py", "configs.py", "launch/__init__.py", "search.py")
SHORT = (
    "--config.data.batch=2",
    "--config.data.eval_batch=2",
    "--config.schedule.epochs=1",
    "--config.schedule.warmup_steps=1",
    "--config.text.buckets=(160,)",
    "--config.generation.beams=1",
    "--config.keyframes.clusters=3",
    "--config.data.frames=8",
)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", str(out), "."]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """Return the Python of an environment that holds the wheel; its dependencies are those of this environment."""
    home = tmp_path_factory.mktemp("installed") / "env"
    venv.create(home, symlinks=True)
    python = home / "bin" / "python"
    purelib = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps", "--quiet", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A path in a .pth file is searched last, and the .pth files in it are not read: this checkout stays hidden.
    Path(purelib, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


@pytest.fixture
def empty(tmp_path) -> Path:
    """An empty folder, but for files that are called like folders of the checkout."""
    for name in STRANGERS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('raise RuntimeError("a file of the user was imported")\n')
    return tmp_path


def run(command: list[object], folder: Path) -> str:
    """Run a command in a folder, without this checkout in sight; return what it printed."""
    hidden = {"PYTHONPATH", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"XLA_FLAGS": xla_test_flags(1), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=1800
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_holds_one_package_with_its_assets(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"calce_jax"}
    for needed in (
        "py.typed",
        "assets/tiny/base.safetensors",
        "assets/tiny/t5/spiece.model",
        "assets/tiny/bert/vocab.txt",
        "assets/tiny/samples/annotations.jsonl",
        "assets/tiny/samples/shapes_test_000000.mp4",
        "assets/tiny/samples/shapes_test_000000.srt",
        "report/templates/page.html",
        "report/templates/search.css",
        "report/templates/search.js",
    ):
        assert f"calce_jax/{needed}" in names


def test_the_sdist_makes_the_same_wheel(wheel, tmp_path):
    script = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    in_wheel = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info" not in name}
    assert in_wheel <= names
    assert not {name for name in names if name.startswith(("runs/", ".venv", "weights/"))}


@pytest.mark.release
def test_every_module_can_be_imported(installed, empty):
    script = """
        import importlib, pathlib, pkgutil, sys
        import calce_jax
        extras = {"apache_beam", "gradio", "fastapi", "uvicorn", "torch"}
        for module in pkgutil.walk_packages(calce_jax.__path__, "calce_jax."):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name not in extras:
                    raise
        print(pathlib.Path(calce_jax.__file__).parent)
    """
    where = run([installed, "-c", textwrap.dedent(script)], empty).strip().splitlines()[-1]
    assert Path(where).is_relative_to(installed.parents[1])


@pytest.mark.release
def test_commands_work_from_an_empty_folder(installed, empty):
    calce = installed.with_name("calce")
    assert run([calce, "--version"], empty).startswith("calce_jax ")

    write_shapes(empty / "shapes", {"train": 2, "val": 1}, seed=7)
    rows = {}
    for split in ("train", "val"):
        rows[split] = (empty / "shapes" / f"{split}.jsonl").read_text().splitlines(keepends=True)[:2]
        (empty / f"{split}.jsonl").write_text("".join(rows[split]))
    media = ("--videos=shapes/videos", "--srts=shapes/srts", "--annotations=train.jsonl,val.jsonl")
    printed = run(
        [calce, "prepare", "--dataset=shapes", *media, "--out=prepared", "--frames=8", "--image_size=56"], empty
    )
    assert "val: 2 of 2 queries" in printed

    where = ("--workdir=runs/stage1", "--config.data.directory=prepared")
    run([calce, "train", "--config=shapes,stage=1", *where, *SHORT], empty)
    assert list((empty / "runs/stage1/checkpoints").glob("[0-9]*"))

    predictions = [
        json.dumps({"qid": row["qid"], "vid": row["vid"], "query": row["query"], "pred_relevant_windows": [[0, 5, 1]]})
        for row in map(json.loads, rows["val"])
    ]
    (empty / "predictions.jsonl").write_text("\n".join(predictions) + "\n")
    files = ("--predictions=predictions.jsonl", "--annotations=val.jsonl", "--out=scores.json")
    assert "mIoU" in run([calce, "evaluate", *files], empty)

    sample = load_samples()[0]
    run([calce, "search", sample.video, f"--query={sample.queries[0]}", "--out=found", "--cache=cache"], empty)
    assert (empty / "found/index.html").is_file()
    (result,) = json.loads((empty / "found/moments.json").read_text())
    assert [query["query"] for query in result["queries"]] == [sample.queries[0]]
