"""The options of commands that take a model by its folder or name: `--checkpoint=NAME --yes --models_dir=DIR`."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click

from calce_jax.commands.command import FOLDER, switch


class ModelOptions(NamedTuple):
    """The values of the options, by their names."""

    checkpoint: str | None
    yes: bool
    models_dir: str | None
    keep_downloads: bool


def models_dir_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --models_dir to a command."""
    return click.option(
        "--models_dir",
        type=FOLDER,
        help="folder of published models; $CALCE_MODELS or ~/.local/share/calce/models unless given",
    )(command)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, as parameters with the names of the fields of `ModelOptions`."""
    checkpoint = click.option(
        "--checkpoint",
        type=FOLDER,
        help="folder with the workdirs stage1 and stage2, or a published model such as calce-qvh (`calce models`); the "
        "tiny model unless given",
    )
    yes = switch("yes", help="agree to the download and the terms of a published model without a question")
    keep = switch("keep_downloads", help="keep what a published model is converted from")
    return checkpoint(yes(models_dir_option(keep(command))))


def batch_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --batch to a command."""
    return click.option(
        "--batch",
        type=click.IntRange(min=1),
        help="sentences, or pieces of a long video, that the model answers at once; that of its training's evaluation "
        "unless given. Lower it where memory is short",
    )(command)


def find_checkpoint(options: ModelOptions) -> Path | None:
    """Return the folder of both stages; a published model that is not here is downloaded after a question.

    Returns:
      The folder, or None for the tiny model.

    Raises:
      UserError: as `resolve_model` and `find_stages` raise.
    """
    if options.checkpoint is None:
        return None
    from calce_jax.search.paths import find_stages
    from calce_jax.search.published.store import is_model_name

    folder = Path(options.checkpoint)
    if is_model_name(options.checkpoint):
        from calce_jax.search.published.install import resolve_model

        can_ask = sys.stdin is not None and sys.stdin.isatty()
        folder = resolve_model(
            options.checkpoint,
            options.models_dir,
            confirm=(lambda _: True) if options.yes else _ask if can_ask else None,
            keep_downloads=options.keep_downloads,
        )
    find_stages(folder)
    return folder


def _ask(_: Any) -> bool:
    """Ask whether to download what was just described, and return whether the answer is yes."""
    print("Download it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
