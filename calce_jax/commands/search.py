"""Find moments: `calce search VIDEO... "a dog catches a ball" [--checkpoint=runs/demo]`.

VIDEO is a file, or a folder that is searched for videos; every other argument is a sentence. Prints the best moments of
each sentence, and writes moments.json and index.html, a page that plays them, to --out. Without --checkpoint it uses
the tiny model of the package, which was trained on the shapes dataset alone: four shapes in six colours that appear,
move and disappear, and speech about 24 things. `--mode=speech` searches what is said, from captions, without a model.
"""

import gc
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from calce_jax.commands.command import FILE, Command
from calce_jax.commands.flags.cache import open_cache
from calce_jax.commands.flags.library import library_path
from calce_jax.commands.flags.model import find_checkpoint
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.search import FORMATS, Options, search_options
from calce_jax.commands.flags.verify import apply_verify
from calce_jax.commands.process import garbage_kept
from calce_jax.errors import UsageError
from calce_jax.search.paths import SearchError, check_any_exists, check_ranker
from calce_jax.search.player import find_player, play
from calce_jax.speech.inputs import resolve_whisper_name
from calce_jax.speech.options import TranscriptionOptions
from calce_jax.text.languages import check_language
from calce_jax.video.files import is_video_name

if TYPE_CHECKING:
    from calce_jax.search.modes import ModeResult
    from calce_jax.search.reporter import Reporter
    from calce_jax.search.searcher import Searcher
    from calce_jax.storage.disk_cache import DiskCache
    from calce_jax.storage.program_cache import ProgramCache

DEFAULT_OUT = "found"
FIRST_SEARCH = "the first search compiles its programs, which takes up to a minute; later ones read them"
MAX_SLUG_LENGTH = 40


class Inputs(NamedTuple):
    """What a search reads.

    Attributes:
      paths: files and folders, as given.
      queries: sentences.
      out: output folder, or None.
    """

    paths: list[str]
    queries: list[str]
    out: str | None


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
    search = plan(inputs, options, reporter)
    is_new = inputs.out is not None and not os.path.exists(inputs.out)
    out = ensure_writable(inputs.out) if inputs.out else None  # before the search, not after it
    found = search.run(out)
    moments = merge_results(found.results, inputs.queries, options.top, options.min_score, found.threshold)
    # Printed first: the disk may be full.
    if options.json:
        sys.stdout.write(moments.to_json())
    else:
        print("\n" + moments.to_table(seconds=options.seconds))
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
    elif out is not None and is_new:  # nothing is said in the library
        with suppress(OSError):
            out.rmdir()
            if options.out is None:
                out.parent.rmdir()
    if options.play and moments:
        play(moments[0])


def read_inputs(arguments: Sequence[str], options: Options) -> Inputs:
    """Sort the arguments into videos and sentences.

    An argument is a video if there is such a file or folder, or its name ends like that of a video.

    Raises:
      click.UsageError: there is no video, so the usage is shown.
      UsageError: there is no sentence; or --library is given with a video.
    """
    paths = [text for text in arguments if os.path.exists(text) or is_video_name(Path(text))]
    if options.library and paths:
        raise UsageError(f"--library searches the videos of the library; leave {paths[0]} out, or --library")
    queries = [text for text in arguments if text not in paths] + list(options.query)
    if not paths and not options.library:
        missing = f" (there is no file {arguments[0]})" if arguments else ""
        raise click.UsageError(f"no video{missing}; give files, or folders of videos")
    if not queries:
        raise UsageError('no sentence; describe the moment in quotes: calce search film.mp4 "a dog catches a ball"')
    out = options.out
    if out is None and not options.json:
        slug = "-".join(re.findall(r"\w+", queries[0].lower()))[:MAX_SLUG_LENGTH].strip("-")
        out = f"{DEFAULT_OUT}/{slug or 'moments'}"
    return Inputs(paths, queries, out)


def check_inputs(inputs: Inputs, options: Options) -> None:
    """Check the command line before jax is imported.

    Raises:
      UserError: --out is a file; hotwords are empty; there is no such language or format; a Whisper model, a
        checkpoint, a player or every video is missing; or flags exclude each other.
    """
    if inputs.out is not None:
        check_folder("--out=", inputs.out)
    if unknown := [name for name in options.export if name not in FORMATS]:
        raise UsageError(f"--export={unknown[0]}: no such format; choose among {', '.join(FORMATS)}")
    if inputs.out is None and (options.export or options.clips or options.whisper):
        flag = "--export" if options.export else "--clips" if options.clips else "--whisper"
        raise UsageError(f"{flag} with --json writes files; say where with --out")
    if options.mode == "speech" and options.checkpoint is not None:
        raise UsageError("--mode=speech uses no model; leave --checkpoint out, or search with --mode=both")
    if options.mode != "picture" and options.srt == "none":
        raise UsageError(f"--mode={options.mode} searches captions, and --srt=none says that there are none")
    if options.searches_index and (options.srt != "auto" or options.whisper):
        raise UsageError("--library --mode=speech searches captions that are indexed; leave --srt and --whisper out")
    if options.language is not None:
        check_language(options.language)
    TranscriptionOptions(hotwords=options.hotwords)
    for flag, value in (("handles", options.handles), ("min_score", options.min_score)):
        if value is not None and not isfinite(value):
            raise UsageError(f"--{flag}={value}: must be a number")
    if options.play:
        find_player()
    if options.whisper:
        resolve_whisper_name(options.whisper)
    if not options.library:
        check_any_exists(inputs.paths)
    find_checkpoint(options.model)


def idle_options(options: Options) -> list[str]:
    """Return a line for each option that is given and does nothing beside the others."""
    lines = []
    if options.whisper and options.srt != "auto":
        lines.append(f"--whisper does nothing with --srt={options.srt}")
    if options.hotwords and not (options.whisper and options.srt == "auto"):
        lines.append("--hotwords does nothing without --whisper")
    if options.language and options.searches_index:
        lines.append("--language does nothing with --library --mode=speech, which searches captions that are indexed")
    elif options.language and options.srt != "auto" and not os.path.isdir(options.srt):
        lines.append(f"--language does nothing with --srt={options.srt}")
    if options.library_file and not options.library:
        lines.append("--library_file does nothing without --library")
    return lines


class Search(NamedTuple):
    """A search of `num_videos` videos that can begin; `run` gets the output folder."""

    num_videos: int
    run: Callable[[Path | None], "ModeResult"]


def plan(inputs: Inputs, options: Options, reporter: "Reporter") -> Search:
    """Decide how to search: the index of what is said, the library by its best segments, or video after video."""
    if options.searches_index:
        return plan_index_search(inputs, options)
    if options.library:
        from calce_jax.search.library import Library

        with Library(library_path(options.library_file)) as library:
            has_pictures = library.has_pictures()
        if has_pictures:
            return plan_library_search(inputs, options, reporter)
        reporter.notice("every video is searched; after `calce index --picture` only the best of them are")
    return plan_search(inputs, options, reporter)


def plan_library_search(inputs: Inputs, options: Options, reporter: "Reporter") -> Search:
    """Open the library, of which the best segments are searched.

    Raises:
      UsageError: an option does not go with it.
      LibraryError: it is damaged.
    """
    from calce_jax.search.library import Library
    from calce_jax.search.modes import ModeResult

    for flag, is_given in (
        ("--srt", options.srt != "auto"),
        ("--whisper", options.whisper),
        ("--piece_seconds", options.piece_seconds),
    ):
        if is_given:
            raise UsageError(f"{flag} is not for a library; its videos are searched as they were indexed")
    path = library_path(options.library_file)
    with Library(path) as library:
        num_videos = len(library.videos())
    check_ranker(find_checkpoint(options.model))

    def run(out: Path | None) -> ModeResult:
        cache = open_cache(options.cache, options.cache_gb)
        with garbage_kept():
            programs = open_programs(cache, options)
            from calce_jax.search.library_search import add_library_words, search_library
            from calce_jax.search.load_searcher import enable_compilation_cache, load_searcher
            from calce_jax.search.picture_ranker import open_ranker
            from calce_jax.text.nouns import load_tagger

            load_tagger()

        if not enable_compilation_cache(cache.folder):
            reporter.notice(FIRST_SEARCH)
        stages = find_checkpoint(options.model)
        searcher = load_searcher(stages, cache=cache, batch=options.batch, programs=programs)
        if searcher.notice:
            reporter.notice(searcher.notice)
        with Library(path) as library:
            ranker = open_ranker(searcher, stages)
            found = search_library(
                library, searcher, ranker, inputs.queries, top=options.top, candidates=options.candidates
            )
            words = library.search(inputs.queries, options.top) if options.mode == "both" else None
        for failure in found.failures:
            reporter.error(f"{failure.video}: {failure.reason}; {failure.remedy}".removesuffix("; "))
        if found.num_unranked:
            reporter.notice(
                f"{found.num_unranked} of {num_videos} videos are left out: they have changed, or "
                "`calce index --picture` has not looked at them"
            )
        results = found.results if words is None else add_library_words(found.results, words, inputs.queries)
        return ModeResult(results, searcher.notice, searcher.threshold, num_searched=found.num_videos)

    return Search(num_videos, run)


def plan_index_search(inputs: Inputs, options: Options) -> Search:
    """Open the library, in which what is said in all videos is indexed.

    Raises:
      LibraryError: there is none, or it is damaged.
    """
    from calce_jax.search.library import Library
    from calce_jax.search.modes import ModeResult

    path = library_path(options.library_file)
    with Library(path) as library:
        num_videos = len(library.videos())

    def run(out: Path | None) -> ModeResult:
        with Library(path) as library:
            return ModeResult(library.search(inputs.queries, options.top), num_searched=num_videos)

    return Search(num_videos, run)


def plan_search(inputs: Inputs, options: Options, reporter: "Reporter") -> Search:
    """Select the videos: the given ones, or all of the library.

    Raises:
      SearchError: none of them can be searched.
      UsageError: --srt is one file for several videos, or --out has the videos.
    """
    from calce_jax.search.inputs import RESULT_FOLDERS
    from calce_jax.search.modes import search_videos
    from calce_jax.search.selection import check_selection, select_videos
    from calce_jax.search.video_captions import read_video_captions

    videos = select_videos(inputs.paths, inputs.out, library_path(options.library_file) if options.library else None)
    if Path(options.srt).is_file() and len(videos) > 1:
        raise UsageError(f"--srt={options.srt} is one file for {len(videos)} videos; give a folder, auto or none")
    for folder in RESULT_FOLDERS if inputs.out else ():
        check_folder("--out: ", f"{inputs.out}/{folder}", {str(video): video for video in videos})
    durations = check_selection(videos, inputs.paths, reporter)
    cache = open_cache(options.cache, options.cache_gb)

    def transcribe(videos: Sequence[Path], folder: Path, whisper: str) -> dict[Path, Path]:
        from calce_jax.search.captions import caption_with_cache

        return caption_with_cache(
            videos,
            folder,
            whisper,
            cache,
            language=options.language,
            hotwords=options.hotwords,
            notice=reporter.notice,
        )

    def open_searcher() -> "Searcher":
        with garbage_kept():
            programs = open_programs(cache, options)
            from calce_jax.search.load_searcher import enable_compilation_cache, load_searcher
            from calce_jax.text.nouns import load_tagger

            load_tagger()

        if not enable_compilation_cache(cache.folder):
            reporter.notice(FIRST_SEARCH)
        return load_searcher(
            find_checkpoint(options.model),
            cache=cache,
            max_seconds=options.piece_seconds,
            batch=options.batch,
            programs=programs,
        )

    def run(out: Path | None) -> "ModeResult":
        whisper = options.whisper if options.srt == "auto" and out is not None else None
        captions = read_video_captions(
            durations,
            options.srt,
            reporter,
            partial(transcribe, folder=out / "captions", whisper=whisper) if whisper and out else None,
            options.language,
        )
        return search_videos(
            captions,
            durations,
            inputs.queries,
            options.top,
            mode=options.mode,
            open_searcher=open_searcher,
            reporter=reporter,
        )

    return Search(len(videos), run)


def open_programs(cache: "DiskCache", options: Options) -> "ProgramCache":
    """Begin to read the programs of the last search with this model, and return those that the cache has."""
    from calce_jax.storage.program_cache import ProgramCache
    from calce_jax.storage.programs_ahead import ProgramsAhead

    settings = (find_checkpoint(options.model), options.batch, options.piece_seconds, options.library)
    return ProgramCache(cache, ProgramsAhead(cache, settings))


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
