"""The folder of models that were fetched by name: what is in it, and where. Imports no jax.

calce-qvh/            a model (`calce_jax.checkpoints.model_folder`), complete
calce-qvh.downloads/  what it is converted from; removed when the model is complete, unless it is to be kept
calce-qvh.part/       the model while it is made; renamed when it is complete
calce-qvh.lock        held by the process that makes or removes it
owner--name/          the model "hf:owner/name" of the Hugging Face hub
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from calce_jax.datasets.sources import MODELS
from calce_jax.errors import UserError
from calce_jax.storage.file_names import fit_name
from calce_jax.storage.locks import FileLock

HUB_PREFIX = "hf:"
MODELS_VARIABLE = "CALCE_MODELS"
PART, DOWNLOADS = ".part", ".downloads"
STAGE_FILES = tuple(f"stage{stage}/config.json" for stage in (1, 2))
# As the hub allows them, which also excludes ".." and "--".
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class ModelNameError(UserError):
    """A name of a model that cannot be: the message says which there are."""


@dataclass(frozen=True)
class ModelPaths:
    """Where a model and its parts are.

    Attributes:
      folder: of the complete model.
      part: of the model while it is made.
      downloads: of what it is converted from.
      lock: the lock file.
    """

    folder: Path
    part: Path
    downloads: Path
    lock: Path

    @property
    def is_complete(self) -> bool:
        """Whether the model is here."""
        return has_both_stages(self.folder)

    def size(self) -> int:
        """Return the bytes of all files of the model, also of one that is not complete."""
        return sum(map(folder_size, (self.folder, self.part, self.downloads)))


def default_models_dir() -> Path:
    """Return the default folder: `$CALCE_MODELS`, or `calce/models` in `$XDG_DATA_HOME` or in ~/.local/share."""
    override = os.environ.get(MODELS_VARIABLE)
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share"
    return Path(override) if override else Path(data) / "calce/models"


def is_model_name(text: str) -> bool:
    """Return whether a text names a published model, and not a folder: "calce-qvh" or "hf:owner/name"."""
    return text in MODELS or text.startswith(HUB_PREFIX)


def model_paths(name: str, models_dir: str | Path | None = None) -> ModelPaths:
    """Return where a model is or would be.

    Args:
      name: see `is_model_name`.
      models_dir: by default `default_models_dir()`.

    Raises:
      ModelNameError: there is no such name.
    """
    folder_name = name
    if name.startswith(HUB_PREFIX):
        repo = name.removeprefix(HUB_PREFIX)
        if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
            raise ModelNameError(f"{name!r:.80}: not a model on the Hugging Face hub", "write hf:owner/name")
        folder_name = repo.replace("/", "--")
    elif name not in MODELS:
        raise ModelNameError(f"{name!r:.80}: no such model", f"choose {', '.join(MODELS)} or hf:owner/name")
    root = Path(models_dir) if models_dir else default_models_dir()
    stem = fit_name(folder_name)
    return ModelPaths(root / stem, *(root / fit_name(stem, ending) for ending in (PART, DOWNLOADS, ".lock")))


def hub_models(models_dir: str | Path | None = None) -> list[str]:
    """Return the names of the models of the hub that are here, complete or not."""
    root = Path(models_dir) if models_dir else default_models_dir()
    stems = {path.name.removesuffix(PART) for path in root.glob("*--*") if path.is_dir()} if root.is_dir() else set()
    return sorted(HUB_PREFIX + stem.replace("--", "/", 1) for stem in stems)


def remove_model(name: str, models_dir: str | Path | None = None) -> int:
    """Remove a model with its downloads.

    Returns:
      The bytes that were removed.

    Raises:
      ModelNameError: there is no such name, or the model is not here.
      LockError: another process makes it.
      OSError: a file cannot be removed.
    """
    paths = model_paths(name, models_dir)
    folders = [folder for folder in (paths.folder, paths.part, paths.downloads) if folder.exists()]
    if not folders:
        raise ModelNameError(f"{name} is not in {paths.folder.parent}", "`calce models` lists what is here")
    with FileLock(paths.lock):
        size = paths.size()
        if paths.folder.exists():  # renamed first: a model that is half removed is never opened
            shutil.rmtree(paths.part, ignore_errors=True)
            paths.folder.rename(paths.part)
        for folder in (paths.part, paths.downloads):
            if folder.exists():
                shutil.rmtree(folder)
    return size


def has_both_stages(folder: Path) -> bool:
    """Return whether a folder has the config of both stages, the last files of a model that are written."""
    return all((folder / name).is_file() for name in STAGE_FILES)


def folder_size(folder: Path) -> int:
    """Return the bytes of the files below a folder, which need not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
