"""How `calce search` searches: video after video, the best segments of a library, or the index of what is said."""

import sys
from collections.abc import Callable, Sequence
from functools import cache as once
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from calce_jax.commands.flags.cache import open_cache
from calce_jax.commands.flags.library import library_path
from calce_jax.commands.flags.model import find_checkpoint
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.search import Options
from calce_jax.commands.process import garbage_kept
from calce_jax.commands.search_inputs import Inputs
from calce_jax.errors import UsageError
from calce_jax.search.paths import check_ranker

if TYPE_CHECKING:
    from calce_jax.search.modes import ModeResult
    from calce_jax.search.reporter import Reporter
    from calce_jax.search.searcher import Searcher
    from calce_jax.storage.disk_cache import DiskCache
    from calce_jax.storage.programs_ahead import ProgramsAhead

FIRST_SEARCH = "the first search compiles its programs, which takes up to a minute; later ones read them"
NEW_PROGRAM = "a program is compiled, as at the first search of several sentences: up to a minute; later ones read it"


class Search(NamedTuple):
    """A search of `num_videos` videos that can begin; `run` gets the output folder."""

    num_videos: int
    run: Callable[[Path | None], "ModeResult"]


def read_programs_ahead(options: Options) -> "ProgramsAhead | None":
    """Begin to read the programs of the last search like this one; None if no model is asked.

    Raises:
      UserError: as `find_checkpoint` raises.
    """
    if options.mode == "speech":
        return None
    from calce_jax.storage.programs_ahead import ProgramsAhead

    settings = (str(find_checkpoint(options.model)), options.batch, options.piece_seconds, options.library)
    return ProgramsAhead(open_cache(options.cache, options.cache_gb), settings)


def search_cache(options: Options, ahead: "ProgramsAhead | None") -> "DiskCache":
    """Return the cache of a search, which is that of its programs: a second one would repeat its warnings."""
    return ahead.cache if ahead else open_cache(options.cache, options.cache_gb)


def plan(inputs: Inputs, options: Options, reporter: "Reporter", ahead: "ProgramsAhead | None" = None) -> Search:
    """Decide how to search: the index of what is said, the library by its best segments, or video after video.

    Args:
      inputs, options: of the command.
      reporter: gets notices and errors.
      ahead: from `read_programs_ahead`.
    """
    if options.searches_index:
        return plan_index_search(inputs, options)
    if options.library:
        from calce_jax.search.library import Library

        with Library(library_path(options.library_file)) as library:
            has_pictures = library.has_pictures()
        if has_pictures:
            return plan_library_search(inputs, options, reporter, ahead)
        reporter.notice("every video is searched; after `calce index --picture` only the best of them are")
    return plan_search(inputs, options, reporter, ahead)


def plan_library_search(
    inputs: Inputs, options: Options, reporter: "Reporter", ahead: "ProgramsAhead | None"
) -> Search:
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
        searcher = open_searcher(search_cache(options, ahead), options, reporter, ahead)

        from calce_jax.search.library_search import add_library_words, search_library
        from calce_jax.search.picture_ranker import open_ranker

        if searcher.notice:
            reporter.notice(searcher.notice)
        with Library(path) as library:
            ranker = open_ranker(searcher, find_checkpoint(options.model))
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


def plan_search(inputs: Inputs, options: Options, reporter: "Reporter", ahead: "ProgramsAhead | None") -> Search:
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
    cache = search_cache(options, ahead)

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
            open_searcher=partial(open_searcher, cache, options, reporter, ahead),
            reporter=reporter,
        )

    return Search(len(videos), run)


def open_searcher(
    cache: "DiskCache", options: Options, reporter: "Reporter", ahead: "ProgramsAhead | None"
) -> "Searcher":
    """Load the model, while the programs of the last search with it are read.

    Raises:
      UserError: as `load_searcher` raises.
    """
    stages = find_checkpoint(options.model)
    with garbage_kept():
        from tqdm import tqdm

        from calce_jax.search.load_searcher import enable_compilation_cache, load_searcher
        from calce_jax.storage.program_cache import ProgramCache
        from calce_jax.text.nouns import load_tagger

        load_tagger()
    has_programs = enable_compilation_cache(cache.folder)
    if not has_programs:
        reporter.notice(FIRST_SEARCH)

    @once
    def say_compiling() -> None:
        if has_programs:
            with tqdm.external_write_mode(sys.stderr):  # between bars
                reporter.notice(NEW_PROGRAM)

    return load_searcher(
        stages,
        cache=cache,
        max_seconds=options.piece_seconds,
        batch=options.batch,
        programs=ProgramCache(cache, ahead, say_compiling),
    )
