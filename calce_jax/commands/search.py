"""Find moments: `calce search VIDEO... "a dog catches a ball" [--checkpoint=runs/demo]`.

VIDEO is a file, or a folder that is searched for videos; every other argument is a sentence. Prints the best moments of
each sentence, and writes moments.json and index.html, a page that plays them, to --out. Without --checkpoint it uses
the tiny model of the package, which was trained on the shapes dataset alone: four shapes in six colours that appear,
move and disappear, and speech about 24 things. `--mode=speech` searches what is said, from captions, without a model.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import chain
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from absl import flags

from calce_jax.commands.flags.cache import CacheFlags
from calce_jax.commands.flags.library import LibraryFlag
from calce_jax.commands.flags.model import ModelFlags
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.errors import UsageError
from calce_jax.search.paths import SearchError, check_any_exists
from calce_jax.speech.inputs import resolve_whisper_name
from calce_jax.storage.file_names import single_line
from calce_jax.video.files import is_video_name

if TYPE_CHECKING:
    from calce_jax.search.moment import Moment
    from calce_jax.search.moment_list import MomentList
    from calce_jax.search.results import GroundTruth
    from calce_jax.search.video_result import VideoResult
    from calce_jax.text.caption import Caption

T = TypeVar("T")
FORMATS = ("csv", "edl", "fcpxml", "otio", "vtt", "chapters")
PLAYERS = {"mpv": ("--start={start}", "--end={end}"), "vlc": ("--start-time={start}", "--stop-time={end}")}
DEFAULT_OUT = "found"
MAX_SLUG_LENGTH = 40

FLAGS = flags.FlagValues()
QUERY = flags.DEFINE_multi_string("query", [], "a sentence that describes a moment", flag_values=FLAGS)
OUT = flags.DEFINE_string(
    "out",
    None,
    "output folder: index.html, moments.json, videos; found/<first sentence> unless given",
    flag_values=FLAGS,
)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint",
    None,
    "folder with the workdirs stage1 and stage2, or a published model such as calce-qvh (`calce models`); the tiny "
    "model unless given",
    flag_values=FLAGS,
)
MODEL_FLAGS = ModelFlags(FLAGS)
LIBRARY = flags.DEFINE_bool("library", False, "search the videos of `calce index` instead of files", flag_values=FLAGS)
LIBRARY_FLAG = LibraryFlag(FLAGS)
MODE = flags.DEFINE_enum(
    "mode",
    "picture",
    ["picture", "speech", "both"],
    "picture: by the model, which also reads captions; speech: words that are said, without a model; both: one after "
    "the other",
    flag_values=FLAGS,
)
SRT = flags.DEFINE_string(
    "srt",
    "auto",
    "captions: auto (an .srt or .vtt beside a video, else inside it), none, a file, or a folder of them",
    flag_values=FLAGS,
)
WHISPER = flags.DEFINE_string(
    "whisper",
    None,
    "folder, hub name or size of a Whisper model: transcribes videos without captions, to OUT/captions",
    flag_values=FLAGS,
)
TOP = flags.DEFINE_integer(
    "top",
    5,
    "maximum number of moments of a sentence, for each video and in the printed table",
    lower_bound=1,
    flag_values=FLAGS,
)
MIN_SCORE = flags.DEFINE_float(
    "min_score", None, "leave out moments with a lower score", lower_bound=0.0, upper_bound=1.0, flag_values=FLAGS
)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "annotation file: the page also shows the true moments", flag_values=FLAGS
)
CLIPS = flags.DEFINE_bool("clips", False, "also write every moment as OUT/clips/*.mp4", flag_values=FLAGS)
EXPORT = flags.DEFINE_list(
    "export",
    [],
    f"also write the moments to OUT in these formats: {', '.join(FORMATS)}; a comma between two",
    flag_values=FLAGS,
)
HANDLES = flags.DEFINE_float(
    "handles", 0.0, "seconds more on either side, in clips and exports", lower_bound=0.0, flag_values=FLAGS
)
SECONDS = flags.DEFINE_bool("seconds", False, "print times as numbers of seconds", flag_values=FLAGS)
JSON = flags.DEFINE_bool(
    "json", False, "print the moments as JSON and nothing else; without --out nothing is written", flag_values=FLAGS
)
QUIET = flags.DEFINE_bool(
    "quiet", False, "print the moments alone: no progress, no notices, no names of files", flag_values=FLAGS
)
PLAY = flags.DEFINE_bool("play", False, "play the first moment in mpv or VLC", flag_values=FLAGS)
SEGMENT_SECONDS = flags.DEFINE_float(
    "piece_seconds",
    None,
    "length of the segments that longer videos are split into; that of the training videos unless given",
    lower_bound=1.0,
    flag_values=FLAGS,
)
CACHE_FLAGS = CacheFlags(FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)


class Found(NamedTuple):
    """The results of the videos with results, numbers of videos, and what the reader has to know of the model."""

    results: "list[VideoResult]"
    num_searched: int
    num_videos: int
    notice: str = ""


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


def main(argv: list[str]) -> None:
    """Search every video, print the moments and write the page; a video that fails is reported and left out."""
    inputs = read_inputs(argv[1:])
    check_inputs(inputs)
    if QUIET.value:
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported

    from calce_jax.moments.annotations import read_annotations
    from calce_jax.search.inputs import check_queries
    from calce_jax.search.moment import ranked_moments
    from calce_jax.search.moment_list import MomentList
    from calce_jax.search.results import break_ties_across_videos, drop_below, ensure_writable, ground_truth

    start_time = time.monotonic()
    VERIFY_FLAG.apply()
    check_queries(inputs.queries)
    truth = ground_truth(read_annotations(ANNOTATIONS.value)) if ANNOTATIONS.value else None
    found = search_library(inputs.queries) if LIBRARY.value and MODE.value == "speech" else search_files(inputs)
    out = ensure_writable(inputs.out) if inputs.out and found.results else None
    results = break_ties_across_videos(found.results) if found.results else []
    if MIN_SCORE.value is not None:
        results = drop_below(results, MIN_SCORE.value)
    titles = [result.query for result in results[0].query_results] if results else inputs.queries
    moments = MomentList(
        ranked_moments(results, int(TOP.value or 1)) if results else [],
        queries=titles,
        results=results,
        min_score=MIN_SCORE.value,
    )
    # Printed first: the disk may be full.
    if JSON.value:
        sys.stdout.write(moments.to_json())
    else:
        print("\n" + moments.to_table(seconds=bool(SECONDS.value)))
    if out is not None:
        write(out, moments, truth, found.notice)
        seconds = time.monotonic() - start_time
        report(out, f"searched {found.num_searched} of {found.num_videos} videos in {seconds:.1f} s")
    if PLAY.value and moments:
        play(moments[0])


def read_inputs(arguments: Sequence[str]) -> Inputs:
    """Sort the arguments into videos and sentences.

    An argument is a video if there is such a file or folder, or its name ends like that of a video.

    Raises:
      UsageError: there is no video or no sentence.
    """
    paths = [text for text in arguments if os.path.exists(text) or is_video_name(Path(text))]
    if LIBRARY.value and paths:
        raise UsageError(f"--library searches the videos of the library; leave {paths[0]} out, or --library")
    queries = [text for text in arguments if text not in paths] + list(QUERY.value or [])
    if not paths and not LIBRARY.value:
        missing = f" (there is no file {arguments[0]})" if arguments else ""
        raise UsageError(f"no video{missing}; give files, or folders of videos")
    if not queries:
        raise UsageError('no sentence; describe the moment in quotes: calce search film.mp4 "a dog catches a ball"')
    out = OUT.value
    if out is None and not JSON.value:
        slug = "-".join(re.findall(r"\w+", queries[0].lower()))[:MAX_SLUG_LENGTH].strip("-")
        out = f"{DEFAULT_OUT}/{slug or 'moments'}"
    return Inputs(paths, queries, out)


def check_inputs(inputs: Inputs) -> None:
    """Check the command line before jax is imported.

    Raises:
      UserError: --out is a file; a Whisper model, a checkpoint, a player or every video is missing; there is no such
        format; or flags exclude each other.
    """
    if inputs.out is not None:
        check_folder("--out=", inputs.out)
    if unknown := [name for name in EXPORT.value or [] if name not in FORMATS]:
        raise UsageError(f"--export={unknown[0]}: no such format; choose among {', '.join(FORMATS)}")
    if inputs.out is None and (EXPORT.value or CLIPS.value or WHISPER.value):
        flag = "--export" if EXPORT.value else "--clips" if CLIPS.value else "--whisper"
        raise UsageError(f"{flag} with --json writes files; say where with --out")
    if MODE.value == "speech" and CHECKPOINT.value is not None:
        raise UsageError("--mode=speech uses no model; leave --checkpoint out, or search with --mode=both")
    if MODE.value != "picture" and SRT.value == "none":
        raise UsageError(f"--mode={MODE.value} searches captions, and --srt=none says that there are none")
    if LIBRARY.value and MODE.value == "speech" and (SRT.value != "auto" or WHISPER.value):
        raise UsageError("--library --mode=speech searches captions that are indexed; leave --srt and --whisper out")
    for flag, value in (("handles", HANDLES.value), ("min_score", MIN_SCORE.value)):
        if value is not None and not isfinite(value):
            raise UsageError(f"--{flag}={value}: must be a number")
    if PLAY.value:
        find_player()
    if WHISPER.value:
        resolve_whisper_name(WHISPER.value)
    if not LIBRARY.value:
        check_any_exists(inputs.paths)
    MODEL_FLAGS.find_checkpoint(CHECKPOINT.value)


def search_library(queries: list[str]) -> Found:
    """Search what is said in the videos of the library."""
    from calce_jax.search.library import Library

    with Library(LIBRARY_FLAG.path()) as library:
        results = library.search(queries, int(TOP.value or 1))
        num_videos = len(library.videos())
    return Found(results, num_videos, num_videos)


def search_files(inputs: Inputs) -> Found:
    """Search the given files, or all files of the library.

    Raises:
      SearchError: none of them can be searched.
    """
    from calce_jax.search.inputs import RESULT_FOLDERS, list_videos
    from calce_jax.search.results import ensure_writable
    from calce_jax.search.segments import searchable_duration

    if LIBRARY.value:
        from calce_jax.search.library import Library

        with Library(LIBRARY_FLAG.path()) as library:
            videos = [video.path for video in library.videos() if video.path.is_file()]
    else:
        videos = list_videos(inputs.paths, inputs.out)
    if Path(str(SRT.value)).is_file() and len(videos) > 1:
        raise UsageError(f"--srt={SRT.value} is one file for {len(videos)} videos; give a folder, auto or none")
    for folder in RESULT_FOLDERS if inputs.out else ():
        check_folder("--out: ", f"{inputs.out}/{folder}", {str(video): video for video in videos})
    durations = {
        video: seconds for video in videos if (seconds := try_or_report(searchable_duration, video)) is not None
    }
    if not durations:
        raise SearchError(f"none of {', '.join(inputs.paths) or 'the videos'} can be searched", "see the errors above")
    if inputs.out:
        ensure_writable(inputs.out)  # before the search, not after it
    results, notice = run_search(inputs.queries, durations, inputs.out)
    if not results:
        raise SearchError("no video could be searched", "see the errors above")
    return Found(results, len(results), len(videos), notice)


def run_search(queries: list[str], durations: dict[Path, float], out: str | None) -> tuple[list["VideoResult"], str]:
    """Return the results of the videos that could be searched, and what the reader has to know of the model."""
    from calce_jax.search.inputs import load_captions
    from calce_jax.search.words import add_words, search_words

    cache = CACHE_FLAGS.open()
    top, mode = int(TOP.value or 1), str(MODE.value)
    transcribed: dict[Path, Path] = {}
    if WHISPER.value and SRT.value != "auto":
        print(f"--whisper does nothing with --srt={SRT.value}", file=sys.stderr)
    elif WHISPER.value and out is not None:
        from calce_jax.search.captions import caption_with_cache
        from calce_jax.search.results import ensure_writable

        transcribed = caption_with_cache(list(durations), ensure_writable(out) / "captions", WHISPER.value, cache)

    captions: dict[Path, Sequence[Caption]] = {}
    for video in durations:
        found = try_or_report(load_captions, video, transcribed.get(video, str(SRT.value)))
        if found is not None:
            captions[video] = found
    if mode == "speech":
        for video, spoken in captions.items():
            if not spoken and not QUIET.value:
                print(f"{single_line(str(video))}: it has no captions; --whisper=small.en makes them", file=sys.stderr)
        return search_words(captions, durations, queries, top), ""

    from calce_jax.search.searcher import enable_compilation_cache, load_searcher

    enable_compilation_cache(cache.folder)
    searcher = load_searcher(
        MODEL_FLAGS.find_checkpoint(CHECKPOINT.value), cache=cache, max_seconds=SEGMENT_SECONDS.value
    )
    if searcher.notice and not QUIET.value:
        hint = "" if mode == "both" else " Words that are said are found in any video with --mode=speech."
        print(searcher.notice + hint, file=sys.stderr)

    def search_one(video: Path) -> "VideoResult":
        return searcher.search(video, queries, captions[video], max_moments=top)

    results = [result for video in captions if (result := try_or_report(search_one, video))]
    if mode == "both" and results:
        spoken_in = {result.video: captions[result.video] for result in results}
        results = add_words(results, search_words(spoken_in, durations, queries, top))
    return results, searcher.notice


def write(out: Path, moments: "MomentList", truth: "GroundTruth | None", notice: str) -> None:
    """Write the page, clips and formats; what cannot be written is reported."""
    from calce_jax.search.results import write_results

    handles, names = float(HANDLES.value or 0.0), list(EXPORT.value or [])
    failures = write_results(
        out,
        moments.results,
        max_moments=int(TOP.value or 1),
        clips=bool(CLIPS.value),
        truth=truth,
        notice=notice,
        handles=handles,
    )
    for failure in failures:
        told = f"{single_line(failure.video)}: {failure.reason}; {failure.remedy}".removesuffix("; ")
        print(f"Error: {told}", file=sys.stderr)
    if names and not moments:
        print(f"--export={','.join(names)}: there is no moment to write", file=sys.stderr)
    elif names:
        widened = moments.with_handles(handles)
        for path in chain(*(try_or_report(widened.export, out, [name]) or [] for name in names)):
            if not QUIET.value:
                print(f"wrote {path}", file=sys.stderr if JSON.value else sys.stdout)


def report(out: Path, done: str) -> None:
    """Print where the page is.

    Raises:
      SearchError: it could not be written.
    """
    page = out / "index.html"
    if not JSON.value and not QUIET.value:
        print(f"{done}; open {page}" if page.is_file() else f"{done}; wrote {out}/moments.json")
    if not page.is_file():
        raise SearchError(f"{out}: there is no page, because of the errors above", "fix them and search again")


def find_player() -> list[str]:
    """Return the command line of an installed player, with {start} and {end} in it.

    Raises:
      UsageError: there is none.
    """
    for name, arguments in PLAYERS.items():
        if path := shutil.which(name):
            return [path, *arguments]
    raise UsageError(f"--play: none of {', '.join(PLAYERS)} is installed")


def play(moment: "Moment") -> None:
    """Play a moment, and wait until the player ends."""
    program, *arguments = find_player()
    times = [argument.format(start=f"{moment.start:.2f}", end=f"{moment.end:.2f}") for argument in arguments]
    subprocess.run([program, *times, str(moment.video.resolve())], check=False, capture_output=True)


def try_or_report(function: Callable[..., T], *arguments: Any) -> T | None:
    """Return `function(*arguments)`; if it fails for this video, print the error and return None."""
    try:
        return function(*arguments)
    except SearchError:
        raise
    except (OSError, ValueError) as error:
        print(f"Error: {single_line(str(error))}", file=sys.stderr)
        return None
