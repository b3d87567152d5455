"""Publish a trained model on the Hugging Face hub."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, get_token

from calce_jax.checkpoints.model_folder import export_model
from calce_jax.datasets.hub_download import hub_errors
from calce_jax.errors import UserError
from calce_jax.search.calibration import calibration_path
from calce_jax.search.paths import find_stages, ranker_path
from calce_jax.search.published.card import model_card
from calce_jax.storage.atomic_files import link_or_copy, write_atomic

_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class PushError(UserError):
    """A model cannot be published: no token, a wrong name, or no room for the files."""


def push_to_hub(
    source: str | Path,
    repo: str,
    *,
    private: bool = False,
    licence: str | None = None,
    log: Callable[[str], None] = print,
) -> str:
    """Publish both stages of a model, with a model card; `calce_jax.load("hf:owner/name")` opens it.

    The token is that of `$HF_TOKEN`, or of `hf auth login`. The repository is created if it does not exist; files of an
    earlier upload that have other content now are replaced in one commit.

    Args:
      source: a folder with the workdirs `stage1` and `stage2`; the best checkpoint of each is taken, and the files of
        `calce fit_ranker` and `calce calibrate`, where it has them.
      repo: "owner/name".
      private: create the repository as a private one; one that exists stays as it is.
      licence: identifier of the licence for the card, such as "mit"; the card says if there is none.
      log: called with a line for each step.

    Returns:
      The address of the commit.

    Raises:
      PushError: there is no token, `repo` is not "owner/name", or the disk of `source` has no room or refuses.
      SearchError, ConfigError, CheckpointError, ConversionError: `source` holds no two stages that belong together.
      FetchError, NoNetworkError: the hub refuses, or cannot be reached.
    """
    if not _REPO.fullmatch(repo):
        raise PushError(f"{repo!r:.80} is not the name of a repository", "write owner/name")
    token = get_token()
    if not token:
        raise PushError("there is no token of the Hugging Face hub", "set $HF_TOKEN, or log in with `hf auth login`")
    source = Path(source)
    find_stages(source)
    try:
        return _push(source, repo, HfApi(token=token), private=private, licence=licence, log=log)
    except UserError:
        raise
    except OSError as error:
        reason = str(error.strerror or error).partition("; ")[0]
        raise PushError(
            f"{source}: {reason}", "make room beside it, or copy it to where there is room and you may write"
        ) from error


def _push(
    source: Path, repo: str, api: HfApi, *, private: bool, licence: str | None, log: Callable[[str], None]
) -> str:
    page = f"{api.endpoint}/{repo}"
    # Beside the source, where the base weights need no room of their own: a hard link.
    with tempfile.TemporaryDirectory(prefix=".calce_push_", dir=source.absolute().parent) as folder:
        stages = export_model(source, Path(folder))
        for extra in (ranker_path(source), calibration_path(source)):
            if extra.is_file():
                link_or_copy(extra, Path(folder) / extra.name)
        write_atomic(Path(folder) / "README.md", model_card(repo, stages, licence))
        log(f"uploading to {page}")
        with hub_errors(page, "check that the token may write there, and the name"):
            api.create_repo(repo, private=private or None, exist_ok=True)
            commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload a model of calce_jax")
    return commit.commit_url
