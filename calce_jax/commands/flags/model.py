"""The flags of commands that take a published model by its name: `--yes --models_dir=DIR --keep_downloads`."""

import sys
from pathlib import Path
from typing import Any

from absl import flags


class ModelFlags:
    """--yes, --models_dir and --keep_downloads of a command with --checkpoint."""

    def __init__(self, flag_values: flags.FlagValues) -> None:
        self._yes = flags.DEFINE_bool(
            "yes",
            False,
            "agree to the download and the terms of a published model without a question",
            flag_values=flag_values,
        )
        self._models_dir = define_models_dir(flag_values)
        self._keep_downloads = flags.DEFINE_bool(
            "keep_downloads", False, "keep what a published model is converted from", flag_values=flag_values
        )

    def find_checkpoint(self, checkpoint: str | None) -> Path | None:
        """Return the folder of both stages; a published model that is not here is downloaded after a question.

        Args:
          checkpoint: --checkpoint: a folder, or the name of a published model; None for the tiny model.

        Raises:
          UserError: as `resolve_model` and `find_stages` raise.
        """
        if checkpoint is None:
            return None
        from calce_jax.search.paths import find_stages
        from calce_jax.search.published.store import is_model_name

        folder = Path(checkpoint)
        if is_model_name(checkpoint):
            from calce_jax.search.published.install import resolve_model

            can_ask = sys.stdin is not None and sys.stdin.isatty()
            folder = resolve_model(
                checkpoint,
                self._models_dir.value,
                confirm=(lambda _: True) if self._yes.value else _ask if can_ask else None,
                keep_downloads=bool(self._keep_downloads.value),
            )
        find_stages(folder)
        return folder


def define_models_dir(flag_values: flags.FlagValues) -> flags.FlagHolder:
    """Define --models_dir."""
    return flags.DEFINE_string(
        "models_dir",
        None,
        "folder of published models; $CALCE_MODELS or ~/.local/share/calce/models unless given",
        flag_values=flag_values,
    )


def _ask(_: Any) -> bool:
    """Ask whether to download what was just described, and return whether the answer is yes."""
    print("Download it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
