"""The files of a release agree with the package: citation, workflow, image, and the guide for agents."""

import ast
import inspect
import re
import tomllib
from importlib import resources
from pathlib import Path

import click
import pytest
import yaml

import calce_jax
from calce_jax.commands.cli import COMMANDS
from calce_jax.commands.flags.command import FlagsCommand
from calce_jax.commands.runner import FAILED, INTERRUPTED, TERMINATED, USAGE
from tests.helpers.commands import load_command
from tests.helpers.documented_commands import check_command, page_commands

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW, RELEASE_WORKFLOW = (ROOT / ".github" / "workflows" / name for name in ("tests.yml", "release.yml"))


def python_versions() -> list[str]:
    """Return the minor versions of Python in the classifiers."""
    return re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))


def workflow_jobs(workflow: Path = WORKFLOW) -> dict[str, dict]:
    """Return the jobs of a workflow by name."""
    return yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]


def job_commands(job: dict) -> str:
    """Return the commands of a job."""
    return "\n".join(step["run"] for step in job["steps"] if "run" in step)


@pytest.mark.parametrize(
    "path", [WORKFLOW, RELEASE_WORKFLOW, ROOT / "mkdocs.yml", ROOT / "CITATION.cff"], ids=lambda path: path.name
)
def test_yaml_files_parse(path: Path):
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_citation_has_the_version_and_licence_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["version"] == calce_jax.__version__
    assert citation["license"] == PROJECT["license"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## [{citation['version']}] - {citation['date-released']}\n" in changelog
    (method,) = citation["references"]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert method["title"] in re.sub(r"\s+", " ", readme)


def test_the_workflow_runs_every_python_of_the_classifiers():
    versions = python_versions()
    assert versions[0] == PROJECT["requires-python"].removeprefix(">=")
    jobs = workflow_jobs()
    for name in ("check", "test", "wheel"):
        assert jobs[name]["strategy"]["matrix"]["python"] == versions, name
    assert jobs["docs"]["steps"][1]["with"]["python-version"] in versions


def test_the_workflow_runs_targets_that_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    jobs = workflow_jobs() | workflow_jobs(RELEASE_WORKFLOW)
    used = {name: re.findall(r"^make ([\w-]+)", job_commands(job), re.MULTILINE) for name, job in jobs.items()}
    assert used == {"check": ["check"], "test": ["test"], "wheel": [], "docs": ["docs"], "test-all": ["test-all"]}
    assert {target for names in used.values() for target in names} <= targets


def test_the_workflow_searches_a_sample_that_the_package_has():
    commands = job_commands(workflow_jobs()["wheel"])
    assert " search " in commands
    (sample,) = re.findall(r"samples/(\w+\.mp4)", commands)
    assert resources.files("calce_jax").joinpath("assets/tiny/samples", sample).is_file()


def test_the_image_has_its_files_a_user_and_the_command():
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]  # the last word is the target
    ]
    assert copied
    assert all((ROOT / word).exists() for word in copied)
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert {word.split("/")[0] for word in copied} == kept
    assert [line for line in lines if line.startswith("USER ")] == ["USER calce"]
    assert 'ENTRYPOINT ["calce"]' in lines
    (python,) = {re.sub(r"FROM python:([\d.]+)-.*", r"\1", line) for line in lines if line.startswith("FROM ")}
    assert python in python_versions()


def test_the_guide_for_agents_knows_the_commands_and_exit_codes():
    guide = ROOT / "SKILL.md"
    text = guide.read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header).keys() == {"name", "description"}
    assert re.findall(r"^\| `calce (\w+)`", body, re.MULTILINE) == list(COMMANDS)
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", body, re.MULTILINE)]
    assert codes == [0, FAILED, USAGE, INTERRUPTED, TERMINATED]
    commands = list(page_commands(guide))
    assert commands
    for command in commands:
        check_command(command)


def test_the_guide_for_agents_names_required_flags():
    text = (ROOT / "SKILL.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `calce (\w+)` \| (.*)$", text, re.MULTILINE))
    for name in COMMANDS:
        command = load_command(name)
        required = [param.opts[0] for param in command.params if isinstance(param, click.Option) and param.required]
        if isinstance(command, FlagsCommand):
            groups = re.findall(r"mark_flags_as_required\((\[.*?\])", inspect.getsource(command.module))
            required = [f"--{flag}" for group in groups for flag in ast.literal_eval(group)]
        for flag in required:
            assert f"`{flag}`" in rows[name], (name, flag)
