"""The options of commands that cache results on disk: `--cache=DIR --cache_gb=10`."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from calce_jax.commands.command import FOLDER

if TYPE_CHECKING:
    from calce_jax.storage.disk_cache import DiskCache


def cache_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --cache and --cache_gb to a command, as its parameters `cache` and `cache_gb`, see `open_cache`."""
    folder = click.option(
        "--cache",
        type=FOLDER,
        help="folder of key frames and features for later searches; safe to delete; ~/.cache/calce unless given",
    )
    gigabytes = click.option(
        "--cache_gb", type=click.FloatRange(min=0), default=10.0, help="maximum size of that folder, GB"
    )
    return folder(gigabytes(command))


def open_cache(folder: str | None, gigabytes: float) -> "DiskCache":
    """Return the cache that the options name; its folder is created at the first write."""
    from calce_jax.storage.disk_cache import DiskCache, default_cache_dir

    return DiskCache(folder or default_cache_dir(), int(gigabytes * 1e9))
