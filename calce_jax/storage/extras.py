"""Which command installs an extra of the package: it is on no index, so that depends on where it came from."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

PACKAGE = "calce_jax"


def extra_remedy(extra: str) -> str:
    """Return "install the extra: pip install ...", with the command of `install_command`."""
    return f"install the extra: {install_command(extra)}"


def install_command(extra: str, root: Path | None = None) -> str:
    """Return the command that installs an extra such as "web" from where the package was installed.

    Args:
      extra: a key of `[project.optional-dependencies]` in pyproject.toml.
      root: the folder that holds the package; the running one by default.

    Returns:
      For a checkout, in which the package may also run without being installed, `pip install -e 'FOLDER[web]'`; else
      the folder, archive or repository that pip has recorded (direct_url.json); without a record the name alone.
    """
    root = Path(__file__).resolve().parents[2] if root is None else root
    if (root / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{root}[{extra}]')}"
    requirement = f"{PACKAGE}[{extra}]"
    if source := _recorded_source():
        requirement += f" @ {source}"
    return f"pip install {shlex.quote(requirement)}"


def _recorded_source() -> str:
    """Return the URL from which pip installed the package, as a requirement has it behind "@"; "" if unknown."""
    try:
        record = json.loads(distribution(PACKAGE).read_text("direct_url.json") or "{}")
        url = str(record.get("url", ""))
        if vcs := record.get("vcs_info"):
            return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    except (PackageNotFoundError, ValueError, KeyError, AttributeError):
        return ""
    return url
