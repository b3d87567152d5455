"""The option of commands that use a library: `--library_file=FILE`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from calce_jax.commands.command import FILE


def library_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --library_file to a command, as its parameter `library_file`, see `library_path`."""
    return click.option(
        "--library_file", type=FILE, help="the library; ~/.local/share/calce/library.sqlite unless given"
    )(command)


def library_path(library_file: str | None) -> Path:
    """Return the file that the option names, or the default."""
    from calce_jax.search.library import default_library

    return Path(library_file) if library_file else default_library()
