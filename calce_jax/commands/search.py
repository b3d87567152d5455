"""Find moments: `calce search VIDEO... --query="a dog catches a ball" --out=DIR [--checkpoint=runs/demo]`.

VIDEO is a file, or a folder that is searched for videos. Prints the best moments of each query, and writes
DIR/moments.json and DIR/index.html, a page that plays them. Without --checkpoint it uses the tiny model of the package,
which was trained on the shapes dataset alone: four shapes in six colours that appear, move and disappear, and speech
about 24 things.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

from calce_jax.commands.flags.cache import CacheFlags
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.errors import UsageError
from calce_jax.search.paths import SearchError, check_any_exists, find_stages
from calce_jax.speech.inputs import resolve_whisper_name
from calce_jax.storage.file_names import single_line

if TYPE_CHECKING:
    from calce_jax.search.results import RankedMoment

T = TypeVar("T")
TINY_MODEL_NOTICE = (
    "no --checkpoint: using the tiny model, which was trained on the shapes videos of the demo alone; its results for "
    "other videos are meaningless"
)

FLAGS = flags.FlagValues()
QUERY = flags.DEFINE_multi_string("query", None, "a sentence that describes a moment", flag_values=FLAGS)
OUT = flags.DEFINE_string("out", None, "output folder: index.html, moments.json, videos", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "folder with the workdirs stage1 and stage2; the tiny model unless given", flag_values=FLAGS
)
SRT = flags.DEFINE_string(
    "srt",
    "auto",
    "captions: auto (the .srt beside a video), none, an .srt file, or a folder of them",
    flag_values=FLAGS,
)
WHISPER = flags.DEFINE_string(
    "whisper",
    None,
    "folder, hub name or size of a Whisper model: transcribes videos without an .srt, to OUT/captions",
    flag_values=FLAGS,
)
TOP = flags.DEFINE_integer(
    "top",
    5,
    "maximum number of moments of a query, for each video and in the printed table",
    lower_bound=1,
    flag_values=FLAGS,
)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "annotation file: the page also shows the true moments", flag_values=FLAGS
)
CLIPS = flags.DEFINE_bool("clips", False, "also write every moment as DIR/clips/*.mp4", flag_values=FLAGS)
SEGMENT_SECONDS = flags.DEFINE_float(
    "piece_seconds",
    None,
    "length of the segments that longer videos are split into; that of the training videos unless given",
    lower_bound=1.0,
    flag_values=FLAGS,
)
CACHE_FLAGS = CacheFlags(FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)
flags.mark_flags_as_required(["query", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Search every video, print the moments and write the page; a video that fails is reported and left out."""
    if len(argv) == 1:
        raise UsageError("no video; give files, or folders of videos")
    check_paths(argv[1:])

    from calce_jax.moments.annotations import read_annotations
    from calce_jax.search.captions import caption_with_cache
    from calce_jax.search.inputs import RESULT_FOLDERS, check_queries, list_videos, load_captions
    from calce_jax.search.results import (
        break_ties_across_videos,
        ensure_writable,
        ground_truth,
        rank_moments,
        write_results,
    )
    from calce_jax.search.searcher import enable_compilation_cache, load_searcher
    from calce_jax.search.segments import searchable_duration
    from calce_jax.search.video_result import VideoResult

    start_time = time.monotonic()
    VERIFY_FLAG.apply()
    queries = list(QUERY.value or [])
    check_queries(queries)
    truth = ground_truth(read_annotations(ANNOTATIONS.value)) if ANNOTATIONS.value else None
    videos = list_videos(argv[1:], str(OUT.value))
    for folder in RESULT_FOLDERS:
        check_folder("--out: ", f"{OUT.value}/{folder}", {str(video): video for video in videos})
    readable = [video for video in videos if try_or_print(searchable_duration, video) is not None]
    if not readable:
        raise SearchError(f"none of {', '.join(argv[1:])} can be searched", "see the errors above")
    out = ensure_writable(str(OUT.value))
    cache = CACHE_FLAGS.open()
    if Path(str(SRT.value)).is_file() and len(videos) > 1:
        raise UsageError(f"--srt={SRT.value} is one file for {len(videos)} videos; give a folder, auto or none")
    if CHECKPOINT.value is None:
        print(TINY_MODEL_NOTICE, file=sys.stderr)
    enable_compilation_cache(cache.folder)
    transcribed: dict[Path, Path] = {}
    if WHISPER.value and SRT.value != "auto":
        print(f"--whisper does nothing with --srt={SRT.value}", file=sys.stderr)
    elif WHISPER.value:
        transcribed = caption_with_cache(readable, out / "captions", WHISPER.value, cache)
    searcher = load_searcher(CHECKPOINT.value, cache=cache, max_seconds=SEGMENT_SECONDS.value)

    def search(video: Path) -> VideoResult:
        captions = load_captions(video, transcribed.get(video, str(SRT.value)))
        return searcher.search(video, queries, captions, max_moments=TOP.value)

    results = [result for video in readable if (result := try_or_print(search, video))]
    if not results:
        raise SearchError("no video could be searched", "see the errors above")
    results = break_ties_across_videos(results)
    # Printed first: the disk may be full.
    print_moments(rank_moments(results, TOP.value))
    for failure in write_results(
        out, results, max_moments=TOP.value, clips=CLIPS.value, truth=truth, notice=searcher.notice
    ):
        print(f"Error: {failure.video}: {failure.reason}; {failure.remedy}".removesuffix("; "), file=sys.stderr)
    seconds = time.monotonic() - start_time
    print(f"searched {len(results)} of {len(videos)} videos in {seconds:.1f} s; ", end="")
    if not (out / "index.html").is_file():
        print(f"wrote {out}/moments.json")
        raise SearchError(f"{out}: there is no page, because of the errors above", "fix them and search again")
    print(f"open {out}/index.html")


def check_paths(videos: list[str]) -> None:
    """Check the paths of the command line, before jax is imported.

    Raises:
      UserError: --out is a file, or a Whisper model, a checkpoint, or every video is missing.
    """
    check_folder("--out=", str(OUT.value))
    if WHISPER.value:
        resolve_whisper_name(WHISPER.value)
    check_any_exists(videos)
    if CHECKPOINT.value is not None:
        find_stages(CHECKPOINT.value)


def try_or_print(function: Callable[..., T], *arguments: Any) -> T | None:
    """Return `function(*arguments)`; if it fails for this video, print the error and return None."""
    try:
        return function(*arguments)
    except SearchError:
        raise
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return None


def print_moments(rows: list["RankedMoment"]) -> None:
    """Print the moments of each query over all videos, best first."""
    names = {row.video: single_line(row.video.name) for row in rows}
    width = max(map(len, names.values()), default=0)
    for query in dict.fromkeys(QUERY.value or []):
        print(f"\n{query.strip()}")
        query_rows = [row for row in rows if row.query == query.strip()]
        print(f"  {'file':<{width}}  {'start':>9}  {'end':>9}  score" if query_rows else "  no moment found")
        for row in query_rows:
            start, end = row.moment.start, row.moment.end
            print(f"  {names[row.video]:<{width}}  {start:7.1f} s  {end:7.1f} s  {row.moment.score:.3f}")
    print()
