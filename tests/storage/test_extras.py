"""The command that installs an extra works from where the package came: a checkout, a wheel, a repository."""

import json
import shlex
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from calce_jax.storage import extras
from calce_jax.storage.extras import extra_remedy, install_command

ROOT = Path(__file__).parents[2]


class Record:
    """A distribution with a direct_url.json."""

    def __init__(self, value):
        self.value = value

    def read_text(self, name):
        assert name == "direct_url.json"
        return self.value


def test_in_a_checkout_it_names_the_folder():
    assert extra_remedy("web") == f"install the extra: pip install -e '{ROOT}[web]'"


@pytest.mark.parametrize(
    ("record", "requirement"),
    [
        ({"url": "file:///w/calce_jax-1.whl", "archive_info": {}}, "calce_jax[web] @ file:///w/calce_jax-1.whl"),
        (
            {"url": "https://example.org/c.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "calce_jax[web] @ git+https://example.org/c.git@abc",
        ),
        (None, "calce_jax[web]"),
    ],
)
def test_elsewhere_it_is_what_pip_has_recorded(tmp_path, monkeypatch, record, requirement):
    text = None if record is None else json.dumps(record)
    monkeypatch.setattr(extras, "distribution", lambda name: Record(text))
    assert shlex.split(install_command("web", tmp_path)) == ["pip", "install", requirement]


def test_a_package_that_is_not_installed(tmp_path, monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(extras, "distribution", absent)
    assert install_command("web", tmp_path) == "pip install 'calce_jax[web]'"


def test_no_message_names_an_extra_in_another_way():
    sources = (ROOT / "calce_jax").rglob("*.py")
    named = [path.name for path in sources if "calce_jax[" in path.read_text(encoding="utf-8")]
    assert named == []
