"""What a search is given: videos, a trained model, an address; checked without jax, so that mistakes show at once."""

import os
import socket
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from calce_jax.config import ASSETS, packaged_path
from calce_jax.datasets.sources import MODELS
from calce_jax.errors import UsageError, UserError

RANKER_FILE = "ranker.safetensors"
TINY_RANKER = f"{ASSETS}tiny/{RANKER_FILE}"


class SearchError(UserError):
    """A query, a video or a checkpoint cannot be searched."""


def check_any_exists(paths: Sequence[str]) -> None:
    """Check that one of the given videos or folders exists.

    Raises:
      SearchError: none does; names each.
    """
    if any(os.path.exists(path) for path in paths):
        return
    raise SearchError(
        "\n".join(f"{path}: there is no such file" for path in paths), "put it there, or correct the name"
    )


def find_stages(checkpoint: str | Path) -> list[Path]:
    """Return the workdirs of both stages below a folder.

    Raises:
      SearchError: one of them is missing.
    """
    folders = [Path(checkpoint) / f"stage{stage}" for stage in (1, 2)]
    missing = [str(folder) for folder in folders if not os.path.isfile(folder / "config.json")]
    if missing and not os.path.isdir(checkpoint):
        near = get_close_matches(str(checkpoint), MODELS, n=1)
        if str(checkpoint) in MODELS or str(checkpoint).startswith("hf:"):
            raise SearchError(
                f"{checkpoint} is the name of a published model, and a folder is needed here",
                "`calce models` shows the folder of one that is here",
            )
        if near:
            raise SearchError(f"{checkpoint}: there is no such folder or published model", f"did you mean {near[0]}?")
    if missing:
        raise SearchError(
            f"{checkpoint}: no trained run in {' and '.join(missing)}",
            "give the folder that contains the workdirs stage1 and stage2 (`make demo` makes runs/demo), the name of a "
            "published model (`calce models`), or leave --checkpoint out for the tiny model",
        )
    return folders


def ranker_path(checkpoint: str | Path | None) -> Path:
    """Return the file of the ranker of a checkpoint folder, or that of the tiny model; there may be none."""
    return packaged_path(TINY_RANKER) if checkpoint is None else Path(checkpoint) / RANKER_FILE


def check_ranker(checkpoint: str | Path | None) -> None:
    """Check that a checkpoint folder has a ranker.

    Raises:
      SearchError: it has none.
    """
    if not ranker_path(checkpoint).is_file():
        raise SearchError(
            f"{checkpoint}: there is no {RANKER_FILE}", f"make one with `calce fit_ranker --checkpoint={checkpoint}`"
        )


def check_host(host: str) -> None:
    """Check that an address to listen on can be resolved.

    Raises:
      UsageError: it cannot.
    """
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--host={host}: no such address ({reason})",
            "give an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all",
        ) from None
