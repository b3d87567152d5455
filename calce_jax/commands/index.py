"""Keep a library of videos, to search them all at once: `calce index FOLDER...`.

Reads the videos that are new or have changed, with the captions beside them or inside; run it again at any time, also
after it was interrupted. Then `calce ls` lists them, and `calce search --library --mode=speech "a river"` searches what
is said in them. --picture also looks at them with the model, so that `calce search --library "a dog catches a ball"`
answers in seconds. --watch goes on, and indexes what is added or changed.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from calce_jax.commands.command import FILE, Command, switch
from calce_jax.commands.flags.cache import cache_options, open_cache
from calce_jax.commands.flags.library import library_option, library_path
from calce_jax.commands.flags.model import ModelOptions, find_checkpoint, model_options
from calce_jax.errors import UsageError, UserError
from calce_jax.search.paths import SearchError, check_any_exists
from calce_jax.storage.extras import extra_remedy

if TYPE_CHECKING:
    from calce_jax.search.picture_ranker import PictureRanker


@click.command("index", cls=Command, help=__doc__)
@click.argument("folders", nargs=-1, type=FILE, metavar="FOLDER...")
@library_option
@switch("picture", help="also look at every video with the model, once")
@switch("watch", help="index again whenever something changes in the folders, until interrupted")
@model_options
@cache_options
def command(
    *,
    folders: tuple[str, ...],
    library_file: str | None,
    picture: bool,
    watch: bool,
    checkpoint: str | None,
    yes: bool,
    models_dir: str | None,
    keep_downloads: bool,
    cache: str | None,
    cache_gb: float,
) -> None:
    """Index the folders, print what has changed, and report the videos that could not be read."""
    if not folders:
        raise UsageError("no folder; for example: calce index ~/Videos")
    if checkpoint is not None and not picture:
        raise UsageError("--checkpoint names the model of --picture; give both, or neither")
    check_any_exists(folders)
    model = ModelOptions(checkpoint, yes, models_dir, keep_downloads)
    ranker = open_picture_ranker(model, cache, cache_gb) if picture else None
    if not watch:
        index(folders, library_path(library_file), ranker)
        return
    try:
        from calce_jax.search.watch import watch_videos
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", extra_remedy("watch")) from None
    watch_videos(folders, partial(index, folders, library_path(library_file), ranker))


def open_picture_ranker(model: ModelOptions, cache: str | None, cache_gb: float) -> "PictureRanker":
    """Load a model and its ranker.

    Raises:
      UserError: there is no ranker, or the model cannot be loaded.
    """
    stages = find_checkpoint(model)

    from calce_jax.search.picture_ranker import require_ranker
    from calce_jax.search.searcher import enable_compilation_cache, load_searcher

    disk_cache = open_cache(cache, cache_gb)
    enable_compilation_cache(disk_cache.folder)
    return require_ranker(load_searcher(stages, cache=disk_cache), stages)


def index(folders: Sequence[str], path: Path, ranker: "PictureRanker | None") -> None:
    """Index the folders once.

    Raises:
      SearchError: no video can be indexed.
    """
    from calce_jax.search.library import Library
    from calce_jax.storage.failures import failure_table, write_failures

    with Library(path, create=True) as library:
        result = library.index(folders, progress("index"))
        counts = {
            "added": result.added,
            "changed": result.changed,
            "moved": result.moved,
            "unchanged": result.unchanged,
            "removed": result.removed,
        }
        all_failures = result.failures
        if ranker is not None:
            looked_at = library.index_pictures(ranker, progress("look"))
            counts["looked at"] = looked_at.added
            all_failures = all_failures + looked_at.failures
        total = len(library.videos())
    failures = path.with_name("failures.jsonl")
    if all_failures:
        write_failures(failures, all_failures)
        print(failure_table(all_failures, str(failures)), file=sys.stderr)
    else:
        failures.unlink(missing_ok=True)
    counts["failed"] = len(all_failures)
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    print(f"{path}: {total} videos; {done}", flush=True)
    if not total:
        raise SearchError(f"none of {', '.join(folders)} can be indexed", "see the errors above")


def progress(what: str) -> Callable[[Sequence[Path]], Iterable[Path]]:
    """Return a function that wraps videos in a progress bar."""
    from tqdm import tqdm

    return lambda videos: tqdm(videos, desc=what, unit="video", smoothing=0.05, dynamic_ncols=True)
