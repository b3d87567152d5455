"""Find moments: `calce search VIDEO... --query="a dog catches a ball" --out=DIR [--checkpoint=runs/demo]`.

Files or folders of videos, and sentences. Prints the best moments, and writes DIR/index.html, which plays them, and
DIR/moments.json. Without --checkpoint it uses the tiny model that comes with the package, which was trained on the
shapes world alone: four coloured shapes that come, move and go, and 24 things that are talked about.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from absl import flags

if TYPE_CHECKING:
    from calce_jax.search.results import RankedMoment

T = TypeVar("T")
TINY_MODEL_NOTICE = (
    "no --checkpoint: this is the tiny model, made for the shapes videos of the demo alone. It runs on any video, and "
    "its answers about others mean nothing."
)

FLAGS = flags.FlagValues()
QUERY = flags.DEFINE_multi_string(
    "query", None, "what to look for, a sentence; may be given several times", flag_values=FLAGS
)
OUT = flags.DEFINE_string("out", None, "folder for index.html and moments.json", flag_values=FLAGS)
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "folder that holds the workdirs stage1 and stage2 of trained runs", flag_values=FLAGS
)
SRT = flags.DEFINE_string(
    "srt", "auto", "auto (the .srt beside a video), none, a file, or a folder of files", flag_values=FLAGS
)
WHISPER = flags.DEFINE_string(
    "whisper", None, "a Whisper's folder, name or size: writes OUT/captions where auto finds none", flag_values=FLAGS
)
TOP = flags.DEFINE_integer("top", 5, "moments a query, in a video and in the table", lower_bound=1, flag_values=FLAGS)
ANNOTATIONS = flags.DEFINE_string(
    "annotations", None, "true moments of some of the videos, for the page", flag_values=FLAGS
)
CLIPS = flags.DEFINE_bool("clips", False, "also cut every moment out, as DIR/clips/*.mp4", flag_values=FLAGS)
SEGMENT_SECONDS = flags.DEFINE_float(
    "piece_seconds", None, "length of videos the model was trained on; known for ours", 1.0, flag_values=FLAGS
)
CACHE = flags.DEFINE_string(
    "cache", None, "folder for what a second search uses again; safe to delete", flag_values=FLAGS
)
CACHE_GB = flags.DEFINE_float("cache_gb", 10.0, "size of that folder at most, GB", lower_bound=0.0, flag_values=FLAGS)
flags.mark_flags_as_required(["query", "out"], flag_values=FLAGS)


def main(argv: list[str]) -> None:
    """Search every video, print a table, write the page; a video that cannot be searched does not stop the others."""
    from calce_jax.moments.annotations import read_annotations
    from calce_jax.search.captions import caption_with_cache
    from calce_jax.search.inputs import SearchError, check_queries, list_videos, load_captions
    from calce_jax.search.results import (
        break_ties_across_videos,
        ensure_writable,
        ground_truth,
        rank_moments,
        write_results,
    )
    from calce_jax.search.searcher import Searcher, VideoResult, enable_compilation_cache, open_stages
    from calce_jax.search.segments import searchable_duration
    from calce_jax.storage.disk_cache import DiskCache, default_cache_dir

    start_time = time.monotonic()
    queries = list(QUERY.value or [])
    check_queries(queries)
    truth = ground_truth(read_annotations(ANNOTATIONS.value)) if ANNOTATIONS.value else None
    videos = list_videos(argv[1:])
    readable = [video for video in videos if try_or_print(searchable_duration, video) is not None]
    if not readable:
        raise SearchError(f"no video among {', '.join(argv[1:])} can be searched", "see above")
    out = ensure_writable(str(OUT.value))
    cache = DiskCache(CACHE.value or default_cache_dir(), int(CACHE_GB.value * 1e9))
    if Path(str(SRT.value)).is_file() and len(videos) > 1:
        raise SearchError(f"--srt={SRT.value} is one file for {len(videos)} videos", "give a folder, auto or none")
    if CHECKPOINT.value is None:
        print(TINY_MODEL_NOTICE, file=sys.stderr)
    enable_compilation_cache(cache.folder)
    transcribed: dict[Path, Path] = {}
    if WHISPER.value and SRT.value == "auto":
        transcribed = caption_with_cache(readable, out / "captions", WHISPER.value, cache)
    searcher = Searcher(open_stages(CHECKPOINT.value), cache, SEGMENT_SECONDS.value)

    def search(video: Path) -> VideoResult:
        captions = load_captions(video, transcribed.get(video, str(SRT.value)))
        return searcher.search(video, queries, captions, max_moments=TOP.value)

    results = [result for video in readable if (result := try_or_print(search, video))]
    if not results:
        raise SearchError("no video could be searched", "see above")
    results = break_ties_across_videos(results)
    write_results(out, results, max_moments=TOP.value, clips=CLIPS.value, truth=truth)
    print_moments(rank_moments(results, TOP.value))
    print(f"{len(results)} of {len(videos)} videos in {time.monotonic() - start_time:.1f} s; open {out}/index.html")


def try_or_print(function: Callable[..., T], *arguments: Any) -> T | None:
    """Return what a function makes of a video; print its error and return None where it fails."""
    from calce_jax.search.inputs import SearchError

    try:
        return function(*arguments)
    except SearchError:
        raise
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return None


def print_moments(rows: list["RankedMoment"]) -> None:
    """Print the moments of each query over all videos, best first."""
    width = max((len(row.video.name) for row in rows), default=0)
    for query in dict.fromkeys(QUERY.value or []):
        print(f"\n{query.strip()}")
        query_rows = [row for row in rows if row.query == query.strip()]
        print(f"  {'file':<{width}}  {'start':>9}  {'end':>9}  score" if query_rows else "  no moment found")
        for row in query_rows:
            start, end = row.moment.start, row.moment.end
            print(f"  {row.video.name:<{width}}  {start:7.1f} s  {end:7.1f} s  {row.moment.score:.3f}")
    print()
