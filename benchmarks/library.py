"""Search a library of videos of the shapes world: every segment asked, or only the best ones by the ranker.

    python -m benchmarks.library --out=runs/bench --videos=2000 --queries=40 --candidates=100,50,20

Writes the videos (`data.shapes.write`), indexes them, and asks queries about their scenes, one after the other. A right
video is any in which the query holds. For each number of candidates: how often a right video is among them; how often
the first moment overlaps a true window by half or more (R1@0.5); seconds a query; peak memory of the process. Videos
and library are kept in OUT/library for the next run.
"""

import argparse
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from calce_jax.moments.windows import iou
from calce_jax.search.library import Library
from calce_jax.search.load_searcher import enable_compilation_cache, load_searcher
from calce_jax.search.moment import ranked_moments
from calce_jax.search.picture_ranker import PictureRanker, open_ranker
from calce_jax.search.results import break_ties_across_videos
from calce_jax.search.searcher import Searcher
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.storage.disk_cache import DiskCache
from data.shapes.scene import VISUAL_QUERY_TEMPLATES, Scene, SceneQuery, make_scene
from data.shapes.write import scene_seed, video_id, write_shapes

SPLIT, SEED = "test", 3
GB = 10**9


@dataclass(frozen=True)
class Row:
    """Results for one number of candidates; shares in percent, memory in MB."""

    candidates: int
    segments_asked: float
    right_video_among_them: float
    r1_at_05: float
    seconds_per_query: float
    peak_memory: float


def true_windows(scene: Scene, query: SceneQuery) -> list[tuple[int, int]]:
    """Return the windows in which a query about another scene holds in this one."""
    if query.kind == "caption":
        return [(said.start, said.end) for said in scene.sentences if said.noun == query.items[0]]
    name = query.items[0]
    texts = {motion: [text.format(thing=name) for text in of] for motion, of in VISUAL_QUERY_TEMPLATES.items()}
    motion = next(motion for motion, of in texts.items() if query.query in of)
    return [(track.start, track.end) for track in scene.tracks if track.name == name and motion in (None, track.motion)]


def main() -> None:
    """Make the library, ask, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="output folder")
    parser.add_argument("--videos", type=int, default=2000, help="videos of the library")
    parser.add_argument("--queries", type=int, default=40, help="queries asked")
    parser.add_argument("--candidates", default="100,50,20", help="numbers of segments asked; all are asked as well")
    parser.add_argument("--checkpoint", default=None, help="folder of stage1, stage2 and ranker.safetensors")
    settings = parser.parse_args()

    work = settings.out / "library"
    write_shapes(work, {SPLIT: settings.videos}, SEED)
    scenes = [make_scene(scene_seed(SPLIT, number, SEED)) for number in range(settings.videos)]
    for number in range(settings.videos):  # the captions beside the videos
        name = f"{video_id(SPLIT, number)}.srt"
        target = work / "videos" / name
        if not target.exists():
            target.symlink_to((work / "srts" / name).resolve())

    enable_compilation_cache(work / "cache")
    searcher = load_searcher(settings.checkpoint, cache=DiskCache(work / "cache", 20 * GB))
    ranker = open_ranker(searcher, settings.checkpoint)
    with Library(work / "library.sqlite", create=True) as library:
        start = time.monotonic()
        library.index([work / "videos"])
        indexed = time.monotonic()
        added = library.index_pictures(ranker.key, ranker.embed_videos).added
        done = time.monotonic()
        print(f"words: {indexed - start:.0f} s; pictures of {added} videos: {done - indexed:.0f} s", flush=True)
        queries = draw_queries(scenes, settings.queries)
        counts = [*map(int, settings.candidates.split(",")), settings.videos * 2]
        asker = Asker(library, searcher, ranker, scenes)
        rows = [asker.measure(queries, count) for count in counts]
    rss = (work / "library.sqlite").stat().st_size / 1e6
    result = {
        "videos": settings.videos,
        "queries": len(queries),
        "library_mb": rss,
        "rows": [asdict(row) for row in rows],
    }
    write_atomic(settings.out / "library.json", json.dumps(result, indent=2) + "\n")


def draw_queries(scenes: Sequence[Scene], count: int) -> list[SceneQuery]:
    """Return queries about different scenes, of all kinds in turn."""
    kinds = ("visual", "caption", "several")
    rng, drawn = np.random.default_rng(0), list[SceneQuery]()
    for number in rng.permutation(len(scenes)):
        kind = kinds[len(drawn) % len(kinds)]
        of_kind = [query for query in scenes[number].queries if query.kind == kind]
        drawn += of_kind[:1]
        if len(drawn) == count:
            break
    return drawn


@dataclass(frozen=True)
class Asker:
    """Asks a library of videos of scenes."""

    library: Library
    searcher: Searcher
    ranker: PictureRanker
    scenes: Sequence[Scene]

    def measure(self, queries: Sequence[SceneQuery], count: int) -> Row:
        """Ask every query, and compare with the scenes."""
        asked, among, first, seconds = list[int](), list[bool](), list[bool](), list[float]()
        # The first query compiles.
        for number, query in enumerate([queries[0], *queries]):
            start = time.monotonic()
            chosen = self.library.choose_segments(
                [query.query], self.ranker.embed_queries([query.query]), self.ranker.key, count
            )
            results, _ = self.searcher.search_segments(chosen, [query.query])
            moments = ranked_moments(break_ties_across_videos(results), 5)
            if number == 0:
                continue
            seconds.append(time.monotonic() - start)
            asked.append(sum(len(video.starts[0]) for video in chosen))
            truth = {video.video: true_windows(self.scenes[int(video.video.stem[-6:])], query) for video in chosen}
            among.append(any(truth.values()))
            best = moments[0] if moments else None
            overlaps = [iou([best.start, best.end], list(window)) for window in truth[best.video]] if best else []
            first.append(max(overlaps, default=0.0) >= 0.5)
        row = Row(
            count,
            float(np.mean(asked)),
            100 * float(np.mean(among)),
            100 * float(np.mean(first)),
            float(np.median(seconds)),
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        )
        print(row, flush=True)
        return row


if __name__ == "__main__":
    main()
