"""Find moments: `calce search VIDEO... "a dog catches a ball" [--checkpoint=runs/demo]`.

VIDEO is a file, or a folder that is searched for videos; every other argument is a sentence. Prints the best moments of
each sentence, and writes moments.json and index.html, a page that plays them, to --out. Without --checkpoint it uses
the tiny model of the package, which was trained on the shapes dataset alone: four shapes in six colours that appear,
move and disappear, and speech about 24 things. `--mode=speech` searches what is said, from captions, without a model.
"""

import gc
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click

from calce_jax.commands.command import FILE, Command
from calce_jax.commands.flags.cache import open_cache
from calce_jax.commands.flags.search import Options, search_options
from calce_jax.commands.flags.verify import apply_verify
from calce_jax.commands.process import garbage_kept
from calce_jax.commands.runner import discard_stdout
from calce_jax.commands.search_inputs import check_inputs, idle_options, read_inputs
from calce_jax.commands.search_plan import plan, read_programs_ahead
from calce_jax.search.paths import SearchError
from calce_jax.search.player import play


@click.command("search", cls=Command, help=__doc__)
@click.argument("arguments", nargs=-1, type=FILE, metavar='VIDEO... "SENTENCE"...')
@search_options
def command(arguments: tuple[str, ...], **values: Any) -> None:
    """Search every video, print the moments and write the page; a video that fails is reported and left out."""
    options = Options(**values)
    inputs = read_inputs(arguments, options)
    check_inputs(inputs, options)
    if options.quiet:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported

    click.get_current_context().call_on_close(gc.unfreeze)  # in a process that goes on, as tests do
    with garbage_kept():
        ahead = read_programs_ahead(options)  # in a thread, beside the other imports

        from calce_jax.search.inputs import check_queries
        from calce_jax.search.merging import merge_results
        from calce_jax.search.output import write_output
        from calce_jax.search.reporter import Reporter
        from calce_jax.search.results import ensure_writable, ground_truth

    start_time = time.monotonic()
    apply_verify(options.verify)
    check_queries(inputs.queries)
    truth = None
    if options.annotations:
        from calce_jax.moments.annotations import read_annotations

        truth = ground_truth(read_annotations(options.annotations))
    reporter = Reporter(
        error=lambda text: print(f"Error: {text}", file=sys.stderr),
        notice=lambda text: None if options.quiet else print(text, file=sys.stderr),
    )
    for line in idle_options(options):
        reporter.notice(line)
    search = plan(inputs, options, reporter, ahead)
    is_new = inputs.out is not None and not os.path.exists(inputs.out)
    out = ensure_writable(inputs.out) if inputs.out else None  # before the search, not after it
    if out is not None and is_new:
        click.get_current_context().call_on_close(partial(remove_if_empty, out, is_default=options.out is None))
    found = search.run(out)
    moments = merge_results(found.results, inputs.queries, options.top, options.min_score, found.threshold)
    # Printed first: the disk may be full.
    unread = print_moments(moments.to_json() if options.json else f"\n{moments.to_table(seconds=options.seconds)}\n")
    if options.json:
        for query in inputs.queries:
            if not any(moment.query == query for moment in moments):
                reporter.notice(f"{query}: {moments.absence(query)}")
    if out is not None and found.results:
        if options.export and not moments:
            print(f"--export={','.join(options.export)}: there is no moment to write", file=sys.stderr)
        written = write_output(
            out,
            moments,
            reporter,
            max_moments=options.top,
            formats=options.export if moments else (),
            clips=options.clips,
            handles=options.handles,
            truth=truth,
            notice=found.notice,
            cache=open_cache(options.cache, options.cache_gb),
        )
        num_searched = len(found.results) if found.num_searched is None else found.num_searched
        seconds = time.monotonic() - start_time
        report(out, written, f"searched {num_searched} of {search.num_videos} videos in {seconds:.1f} s", options)
    if options.play and moments:
        play(moments[0])
    if unread:
        raise unread


def remove_if_empty(out: Path, *, is_default: bool) -> None:
    """Remove the folder of results, and its default parent, where there are none or the search failed."""
    with suppress(OSError):  # it is not empty
        out.rmdir()
        if is_default:
            out.parent.rmdir()


def print_moments(text: str) -> BrokenPipeError | None:
    """Print what was found; return the error of a pipe whose reader has ended, as `head` does.

    Files are still to be written then, and later lines go nowhere.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError as error:
        discard_stdout()
        return error
    return None


def report(out: Path, written: Sequence[Path], done: str, options: Options) -> None:
    """Print where the files and the page are.

    Raises:
      SearchError: the page could not be written.
    """
    page = out / "index.html"
    if not options.quiet:
        for path in written:
            print(f"wrote {path}", file=sys.stderr if options.json else sys.stdout)
        if not options.json:
            print(f"{done}; open {page}" if page.is_file() else f"{done}; wrote {out}/moments.json")
    if not page.is_file():
        raise SearchError(f"{out}: there is no page, because of the errors above", "fix them and search again")
