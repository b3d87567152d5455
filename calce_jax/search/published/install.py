"""A published model by name: fetched, converted and kept, once.

Downloads are continued where they ended, and verified (`calce_jax.datasets.download`). The conversion writes the base
weights, then each stage, each file whole or not at all, and a later call goes on after the last complete one. The
folder gets its name when everything is in it, so a model that is half made is never opened.
"""

import importlib.util
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import get_token

from calce_jax.datasets.download import fetch
from calce_jax.datasets.hub_download import describe_repo
from calce_jax.datasets.sources import MODELS, HubRepo, Publication
from calce_jax.errors import UserError
from calce_jax.search.calibration import CALIBRATION_FILE
from calce_jax.search.paths import RANKER_FILE
from calce_jax.search.published.store import (
    HUB_PREFIX,
    ModelPaths,
    folder_size,
    has_both_stages,
    is_model_name,
    model_paths,
)
from calce_jax.storage.disk_space import format_bytes, free_bytes
from calce_jax.storage.extras import extra_remedy
from calce_jax.storage.locks import FileLock

# What is fetched of a model on the hub: the layout of `calce_jax.checkpoints.model_folder`, and no other file.
_HUB_REQUIRED = (
    "base.safetensors",
    *(f"stage{stage}/{name}" for stage in (1, 2) for name in ("config.json", "trained.safetensors")),
)
_TOKENIZER_NAMES = ("tokenizer.json", "spiece.model", "vocab.txt", "tokenizer_config.json", "special_tokens_map.json")
_HUB_OPTIONAL = (
    "README.md",
    RANKER_FILE,
    CALIBRATION_FILE,
    *(f"{folder}/{name}" for folder in ("t5", "bert") for name in _TOKENIZER_NAMES),
)


class ModelNotHereError(UserError):
    """A model would have to be downloaded, and nobody agreed; the message says what, from where and how to agree."""


class InstallError(UserError):
    """A model cannot be made here: the disk lacks room or cannot be written, or PyTorch is missing."""


@dataclass(frozen=True)
class Offer:
    """What installing a model would do, for the question whether to.

    Attributes:
      name: of the model.
      description: what it is.
      sources: where its files are.
      licence: its known terms.
      download_bytes: still to be downloaded, about.
      disk_bytes: needed on the disk beyond what is there already, while the model is made, about.
      installed_bytes: of the complete model, about.
      folder: where it will be.
    """

    name: str
    description: str
    sources: str
    licence: str
    download_bytes: int
    disk_bytes: int
    installed_bytes: int
    folder: Path

    def __str__(self) -> str:
        download, disk, installed = map(format_bytes, (self.download_bytes, self.disk_bytes, self.installed_bytes))
        return (
            f"{self.name}: {self.description}\n"
            f"  download  about {download}, from {self.sources}\n"
            f"  disk      about {disk} while it is made, {installed} then, in {self.folder}\n"
            f"  terms     {self.licence}"
        )


def resolve_model(
    checkpoint: str | Path,
    models_dir: str | Path | None = None,
    *,
    confirm: Callable[[Offer], bool] | None = None,
    keep_downloads: bool = False,
    log: Callable[[str], None] | None = None,
) -> Path:
    """Return the folder of both stages: of a published model, which is downloaded and converted if it is not here.

    Args:
      checkpoint: a folder; or "calce-qvh", "calce-charades", or "hf:owner/name" of a model that `calce push` published.
        A folder of such a name in the current one goes first if it holds `stage1`.
      models_dir: where models are kept; by default `default_models_dir()`.
      confirm: called once before a download, after sizes, sources and terms were logged; returns whether to go on.
        Without it nothing is downloaded.
      keep_downloads: keep what a model was converted from.
      log: called with a line for each step; by default it prints to stderr.

    Raises:
      ModelNameError: there is no such name.
      ModelNotHereError: it has to be downloaded, and `confirm` is missing or returned False.
      InstallError: the disk lacks room or cannot be written; PyTorch, which reads the original's checkpoints, is
        missing; or files of the model were deleted.
      FetchError, NoNetworkError: a file cannot be fetched, or is not the published one.
      LockError: another process makes this model.
      WeightsFileError, ConversionError, CheckpointError, ConfigError: the files are not those of such a model.
    """
    name = str(checkpoint)
    if (Path(checkpoint) / "stage1").is_dir() or not is_model_name(name):
        return Path(checkpoint)
    paths = model_paths(name, models_dir)
    if paths.is_complete:
        return paths.folder
    if paths.folder.exists():
        raise InstallError(
            f"{paths.folder} lacks files of the model", f"delete it, with `calce models --remove={name}`, and try again"
        )
    offer = _make_offer(name, paths)
    if confirm is None:
        raise ModelNotHereError(
            f"{name} is not in {paths.folder.parent}: about {format_bytes(offer.download_bytes)} would be downloaded "
            f"from {offer.sources}, and about {format_bytes(offer.disk_bytes)} of disk used. Terms: "
            f"{offer.licence.rstrip('.')}",
            f'to agree, calce_jax.load("{name}", yes=True), or --yes on the command line',
        )
    _check_can_install(offer)
    log = log or (lambda line: print(line, file=sys.stderr, flush=True))
    log(str(offer))
    if not confirm(offer):
        raise ModelNotHereError(f"{name} was not downloaded", "agree, or give another --checkpoint")
    try:
        with FileLock(paths.lock):
            if not paths.is_complete:  # another process may have made it meanwhile
                _install(name, paths, keep_downloads, log)
    except UserError:
        raise
    except OSError as error:
        reason = str(error.strerror or error).partition("; ")[0]
        raise InstallError(
            f"{name}: {reason}",
            "make room there, or choose another folder with $CALCE_MODELS, and run the same again to continue",
        ) from error
    return paths.folder


def _make_offer(name: str, paths: ModelPaths) -> Offer:
    present = folder_size(paths.downloads), folder_size(paths.part)
    if name.startswith(HUB_PREFIX):
        part = _hub_part(name)
        size, licence = describe_repo(part, token=get_token())
        remaining = max(size - present[1], 0)
        terms = f"{licence or 'none stated'}, by its model card"
        return Offer(
            name, f"model of {part.repo}", "the Hugging Face hub", terms, remaining, remaining, size, paths.folder
        )
    model = MODELS[name]
    is_converted = has_both_stages(paths.part)  # an interruption between the removal of the downloads and the end
    remaining = 0 if is_converted else max(model.download_bytes - present[0], 0)
    disk = 0 if is_converted else remaining + max(model.disk_bytes - present[1], 0)
    return Offer(
        name,
        model.description,
        ", ".join(model.sources()),
        model.licence,
        remaining,
        disk,
        model.disk_bytes,
        paths.folder,
    )


def _hub_part(name: str) -> HubRepo:
    return HubRepo(name.removeprefix(HUB_PREFIX), _HUB_REQUIRED, _HUB_OPTIONAL)


def _check_can_install(offer: Offer) -> None:
    """Check before the question what would make the answer useless.

    Raises:
      InstallError: PyTorch is missing, or the disk lacks room.
    """
    if offer.name in MODELS and importlib.util.find_spec("torch") is None:
        raise InstallError(f"{offer.name}: reading the original's checkpoints needs PyTorch", extra_remedy("convert"))
    free = free_bytes(offer.folder)
    if free < offer.disk_bytes:
        raise InstallError(
            f"{offer.name} needs about {format_bytes(offer.disk_bytes)} in {offer.folder.parent}, and "
            f"{format_bytes(free)} are free",
            "make room there, or choose another folder with $CALCE_MODELS",
        )


def _install(name: str, paths: ModelPaths, keep_downloads: bool, log: Callable[[str], None]) -> None:
    # With jax, which neither a refusal nor a model that is here needs.
    from calce_jax.checkpoints.model_folder import check_self_contained, is_model_folder  # noqa: PLC0415
    from calce_jax.search.published.conversion import convert_downloads  # noqa: PLC0415

    if name.startswith(HUB_PREFIX):
        _fetch(Publication("", "", (_hub_part(name),), ""), paths.part, get_token(), log)
        check_self_contained(paths.part)
    elif not is_model_folder(paths.part):
        model = MODELS[name]
        for folder, publication in model.downloads.items():
            log(f"{name}: fetching {publication.description}")
            _fetch(publication, paths.downloads / folder, None, log)
        log(f"{name}: converting")
        convert_downloads(model, paths.downloads, paths.part, log)
    if not keep_downloads:
        shutil.rmtree(paths.downloads, ignore_errors=True)
    paths.part.rename(paths.folder)
    log(f"{name}: {format_bytes(folder_size(paths.folder))} in {paths.folder}")


def _fetch(publication: Publication, out: Path, token: str | None, log: Callable[[str], None]) -> None:
    """Fetch all parts of a publication.

    Raises:
      FetchError: of the first part that could not be fetched.
    """
    _, errors = fetch(publication, out, token=token, log=log)
    if errors:
        raise errors[0]
