"""Keep a library of videos, to search them all at once: `calce index FOLDER...`.

Reads the videos that are new or have changed, with the captions beside them or inside; run it again at any time, also
after it was interrupted. Then `calce ls` lists them, and `calce search --library --mode=speech "a river"` searches what
is said in them. --picture also looks at them with the model, so that `calce search --library "a dog catches a ball"`
answers in seconds. --watch goes on, and indexes what is added or changed. --runner=DirectRunner looks at the videos by
an Apache Beam pipeline, or another of Beam's runners; its flags follow after --.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from calce_jax.commands.command import FILE, Command, switch
from calce_jax.commands.flags.beam import HELP, pipeline_options
from calce_jax.commands.flags.cache import cache_options, open_cache
from calce_jax.commands.flags.library import library_option, library_path
from calce_jax.commands.flags.model import ModelOptions, find_checkpoint, model_options
from calce_jax.errors import UsageError, UserError
from calce_jax.search.paths import SearchError, check_any_exists, check_ranker
from calce_jax.storage.extras import extra_remedy

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from calce_jax.search.segment_index import SegmentVectors
    from calce_jax.storage.failures import Failure


@click.command("index", cls=Command, help=__doc__)
@click.argument("arguments", nargs=-1, type=FILE, metavar="FOLDER... [-- FLAGS OF BEAM]")
@library_option
@switch("picture", help="also look at every video with the model, once")
@switch("forget", help="remove the videos of the folders from the library instead, also of folders that are gone")
@switch("watch", help="index again whenever something changes in the folders, until interrupted")
@click.option("--runner", help=f"with --picture: {HELP}")
@model_options
@cache_options
def command(
    *,
    arguments: tuple[str, ...],
    library_file: str | None,
    picture: bool,
    forget: bool,
    watch: bool,
    runner: str | None,
    checkpoint: str | None,
    yes: bool,
    models_dir: str | None,
    keep_downloads: bool,
    cache: str | None,
    cache_gb: float,
) -> None:
    """Index the folders, print what has changed, and report the videos that could not be read."""
    folders = [argument for argument in arguments if not argument.startswith("-")]
    if not folders and arguments and runner is None:
        raise UsageError(f"no folder; write ./{arguments[0]} for a name that begins with -")
    if not folders:
        raise UsageError("no folder; for example: calce index ~/Videos")
    path = library_path(library_file)
    if forget:
        from calce_jax.search.library import Library

        with Library(path) as library:
            print(f"{path}: {library.forget(folders)} videos forgotten, {len(library.videos())} left")
        return
    for flag, value in (("--checkpoint", checkpoint), ("--runner", runner)):
        if value is not None and not picture:
            raise UsageError(f"{flag} is for --picture; give both, or neither")
    pipeline = pipeline_options(runner, [argument for argument in arguments if argument not in folders])
    if not path.is_file():  # a library knows more about a folder that is gone
        check_any_exists(folders)
    model = ModelOptions(checkpoint, yes, models_dir, keep_downloads)
    looker = make_looker(model, cache, cache_gb, pipeline, path.parent) if picture else None
    if not watch:
        index(folders, path, looker)
        return
    try:
        from calce_jax.search.watch import watch_videos
    except ImportError as error:
        raise UserError(f"{error.name} is not installed", extra_remedy("watch")) from None
    watch_videos(folders, partial(index, folders, path, looker))


class Looker(NamedTuple):
    """What `Library.index_pictures` takes: the hash of a ranker, and a function that embeds videos by it."""

    ranker: str
    embed: "Callable[[Mapping[Path, str]], Iterator[tuple[Path, list[SegmentVectors] | Failure]]]"


def make_looker(
    model: ModelOptions, cache: str | None, cache_gb: float, pipeline: "PipelineOptions | None", folder: Path
) -> Looker:
    """Load a model and its ranker, which look at videos here or by a pipeline.

    Raises:
      UserError: there is no ranker, or the model cannot be loaded.
    """
    stages = find_checkpoint(model)
    check_ranker(stages)

    from calce_jax.search.load_searcher import enable_compilation_cache, load_searcher
    from calce_jax.search.picture_ranker import open_ranker
    from calce_jax.storage.program_cache import ProgramCache

    disk_cache = open_cache(cache, cache_gb)
    enable_compilation_cache(disk_cache.folder)
    ranker = open_ranker(load_searcher(stages, cache=disk_cache, programs=ProgramCache(disk_cache)), stages)
    if pipeline is None:
        return Looker(ranker.key, partial(ranker.embed_videos, progress=progress("look")))

    from calce_jax.search.beam import make_embed_fn

    return Looker(ranker.key, make_embed_fn(pipeline, stages, disk_cache, folder))


def index(folders: Sequence[str], path: Path, looker: Looker | None) -> None:
    """Index the folders once.

    Raises:
      SearchError: no video can be indexed.
    """
    from calce_jax.search.library import Library
    from calce_jax.storage.failures import failure_table, write_failures

    is_new = not path.exists()
    with Library(path, create=True) as library:
        try:
            result = library.index(folders, progress("index"))
        except SearchError:
            if is_new:  # an empty library would answer every search with nothing
                path.unlink()
            raise
        counts = {
            "added": result.added,
            "changed": result.changed,
            "moved": result.moved,
            "unchanged": result.unchanged,
            "removed": result.removed,
        }
        all_failures = result.failures
        if looker is not None:
            looked_at = library.index_pictures(looker.ranker, looker.embed)
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


def progress(what: str) -> Callable[[Iterable[Path]], Iterable[Path]]:
    """Return a function that wraps videos in a progress bar."""
    from tqdm import tqdm

    return lambda videos: tqdm(videos, desc=what, unit="video", smoothing=0.05, dynamic_ncols=True)
