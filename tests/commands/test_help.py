"""Help and usage errors take a fraction of a second: they import neither jax nor transformers nor TFDS."""

import importlib.metadata
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import calce_jax
from calce_jax.commands.cli import COMMANDS, main

ROOT = Path(__file__).parents[2]
HEAVY = ("jax", "jaxlib", "flax", "transformers", "tensorflow_datasets", "orbax", "grain", "torch", "av")
PROBE = f"""
import sys
code = 0
try:
    from calce_jax.commands.cli import main
    main(sys.argv[1:])
except SystemExit as error:
    code = error.code
print("loaded:", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        ([], 0, "calce search holiday.mp4"),
        (["--help"], 0, "calce search holiday.mp4"),
        (["--version"], 0, f"calce_jax {calce_jax.__version__}"),
        (["serach"], 2, "calce: No such command 'serach'. Did you mean 'search'?"),
        (["search", "--querry=a"], 2, "No such option '--querry'. Did you mean '--query'?"),
        (["train", "--config=qvhighlights,stage=3", "--workdir=x"], 2, "stage must be one of 1, 2, got '3'"),
        (["train", "--config=shapes", "--workdir=x", "--config.data.frame=8"], 2, "did you mean --config.data.frames"),
        (["config", "shapes"], 0, "key frames of a video; an int >= 2"),
        (["completion", "zsh"], 0, "#compdef calce"),
        (["evaluate", "--rank=best"], 2, "'best' is not one of 'given', 'longest', 'score'"),
        (["train", "--config=shapes", "--workdir=x", "--nothing"], 2, "Unknown command line flag 'nothing'"),
        *(([name, "--help"], 0, "--verbosity") for name in COMMANDS),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_answers_without_heavy_imports(arguments, code, text):
    done = subprocess.run([sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert text in done.stdout + done.stderr
    assert done.stderr.splitlines()[-1] == "loaded:", done.stderr


@pytest.mark.parametrize("arguments", ["", "--help", "--version", "serach", "completing: se"])
def test_the_list_of_commands_imports_none_of_them(arguments):
    script = "import sys; from calce_jax.commands.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    script += (
        f"print('imported:', *[name for name in {list(COMMANDS)} if f'calce_jax.commands.{{name}}' in sys.modules])"
    )
    environment, words = dict(os.environ), arguments.split()
    if arguments.startswith("completing"):
        environment |= {"_CALCE_COMPLETE": "bash_complete", "COMP_WORDS": f"calce {words[1]}", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.splitlines()[-1] == "imported: completion"


def test_completion_of_an_option_imports_nothing_heavy():
    line = {"_CALCE_COMPLETE": "bash_complete", "COMP_WORDS": "calce search --mode ", "COMP_CWORD": "3"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, env=os.environ | line
    )
    assert done.stdout.split() == ["plain,picture", "plain,speech", "plain,both"]
    assert done.stderr.splitlines()[-1] == "loaded:"


def test_a_flag_without_a_default_shows_none(capsys):
    for name in COMMANDS:
        main([name, "--help"])
    assert "(default: 'None')" not in capsys.readouterr().out


SCRIPTS = sorted(path.name for path in (ROOT / "launch").glob("[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_runs_the_package_of_its_checkout(script, tmp_path):
    """From another folder, in an isolated Python, and although another package of that name is found first."""
    (tmp_path / "calce_jax").mkdir()
    (tmp_path / "calce_jax/__init__.py").write_text("raise SystemExit('another package')")
    path = ROOT / "launch" / script
    probe = f"import runpy, sys; sys.argv = [{str(path)!r}, '--help']; sys.path.insert(0, {str(tmp_path)!r}); "
    probe += f"runpy.run_path({str(path)!r}, run_name='__main__'); "
    probe += f"print([name for name in {HEAVY} if name in sys.modules], sys.modules['calce_jax'].__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", probe], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "--verbosity" in done.stdout
    assert done.stdout.splitlines()[-1] == f"[] {ROOT}/calce_jax/__init__.py"


def test_a_wrong_flag_of_the_demo_is_told_without_heavy_imports(tmp_path):
    probe = "import runpy, sys\ntry: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    probe += f"except SystemExit as error: print(error.code, [name for name in {HEAVY} if name in sys.modules])"
    for flag, message in (
        ("--oot=x", "Unknown command line flag 'oot'. Did you mean: out ?"),
        ("--val_videos=1", "--val_videos=1: must be an integer >= 2"),
        (f"--out={tmp_path}/file", f"--out={tmp_path}/file is a file, not a folder; choose a folder"),
    ):
        (tmp_path / "file").write_text("")
        script = f"import sys; sys.argv = [{str(ROOT / 'launch/demo.py')!r}, {flag!r}]\n{probe}"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert done.stdout.splitlines() == ["2 []"], done.stderr
        assert message in done.stderr


def test_calce_is_installed_as_a_command():
    calce = Path(sys.executable).with_name("calce")
    if not calce.exists():
        pytest.skip("calce is not installed: pip install -e .")
    done = subprocess.run([calce, "nothing"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("search")) == (2, 1), done.stderr


def test_importing_the_package_imports_nothing_heavy_and_sets_no_environment_variable():
    script = (
        "import os, sys; before = dict(os.environ); import calce_jax; "
        f"print([name for name in {HEAVY} if name in sys.modules], dict(os.environ) == before)"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == "[] True"


def test_public_functions_are_imported_at_their_first_use():
    assert {name for name in dir(calce_jax) if name in calce_jax.__all__} == set(calce_jax.__all__)
    for name in set(calce_jax.__all__) - {"__version__"}:
        assert callable(getattr(calce_jax, name))
    with pytest.raises(AttributeError, match="module 'calce_jax' has no attribute 'laod'"):
        _ = calce_jax.laod


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "calce_jax.__version__"}
    assert importlib.metadata.version("calce_jax") == calce_jax.__version__
