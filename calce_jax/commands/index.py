"""Keep a library of videos, to search them all at once: `calce index FOLDER...`.

Reads the videos that are new or have changed, with the captions beside them or inside; run it again at any time, also
after it was interrupted. Then `calce ls` lists them, and `calce search --library --mode=speech "a river"` searches what
is said in them.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import click

from calce_jax.commands.command import FILE, Command
from calce_jax.commands.flags.library import library_option, library_path
from calce_jax.errors import UsageError
from calce_jax.search.paths import SearchError, check_any_exists


@click.command("index", cls=Command, help=__doc__)
@click.argument("folders", nargs=-1, type=FILE, metavar="FOLDER...")
@library_option
def command(folders: tuple[str, ...], library_file: str | None) -> None:
    """Index the folders, print what has changed, and report the videos that could not be read."""
    if not folders:
        raise UsageError("no folder; for example: calce index ~/Videos")
    check_any_exists(folders)

    from tqdm import tqdm

    from calce_jax.search.library import Library
    from calce_jax.storage.failures import failure_table, write_failures

    def progress(videos: Sequence[Path]) -> Iterable[Path]:
        return tqdm(videos, desc="index", unit="video", smoothing=0.05, dynamic_ncols=True)

    path = library_path(library_file)
    with Library(path, create=True) as library:
        result = library.index(folders, progress)
        total = len(library.videos())
    failures = path.with_name("failures.jsonl")
    if result.failures:
        write_failures(failures, result.failures)
        print(failure_table(result.failures, str(failures)), file=sys.stderr)
    else:
        failures.unlink(missing_ok=True)
    counts = {
        "added": result.added,
        "changed": result.changed,
        "moved": result.moved,
        "unchanged": result.unchanged,
        "removed": result.removed,
        "failed": len(result.failures),
    }
    done = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    print(f"{path}: {total} videos; {done}")
    if not total:
        raise SearchError(f"none of {', '.join(folders)} can be indexed", "see the errors above")
