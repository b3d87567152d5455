"""Keep a library of videos, to search them all at once: `calce index FOLDER...`.

Reads the videos that are new or have changed, with the captions beside them or inside; run it again at any time, also
after it was interrupted. Then `calce ls` lists them, and `calce search --library --mode=speech "a river"` searches what
is said in them.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from calce_jax.commands.flags.library import LibraryFlag
from calce_jax.errors import UsageError
from calce_jax.search.paths import SearchError, check_any_exists

FLAGS = flags.FlagValues()
LIBRARY_FLAG = LibraryFlag(FLAGS)


def main(argv: list[str]) -> None:
    """Index the folders, print what has changed, and report the videos that could not be read."""
    if len(argv) == 1:
        raise UsageError("no folder; for example: calce index ~/Videos")
    check_any_exists(argv[1:])

    from tqdm import tqdm

    from calce_jax.search.library import Library
    from calce_jax.storage.failures import failure_table, write_failures

    def progress(videos: Sequence[Path]) -> Iterable[Path]:
        return tqdm(videos, desc="index", unit="video", smoothing=0.05, dynamic_ncols=True)

    with Library(LIBRARY_FLAG.path(), create=True) as library:
        result = library.index(argv[1:], progress)
        total = len(library.videos())
    failures = LIBRARY_FLAG.path().with_name("failures.jsonl")
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
    print(f"{LIBRARY_FLAG.path()}: {total} videos; {done}")
    if not total:
        raise SearchError(f"none of {', '.join(argv[1:])} can be indexed", "see the errors above")
