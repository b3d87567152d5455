"""Write the dataset of the benchmark: `python -m data.shapes.bench.write --out=DIR`.

Its files are those of `data.shapes.write`: 494 videos with captions, and the annotations of three splits.
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from calce_jax.errors import UserError
from calce_jax.moments.annotations import Annotation, write_annotations
from data.shapes.bench.queries import choose_queries
from data.shapes.scene import LONG, PLAIN, SHORT, Scene, make_scene
from data.shapes.write import SPLITS, check_provenance, video_id, write_videos

# Changes whenever another video or another query is drawn.
BENCH_VERSION = "benchmark 1"
# No dataset of `data.shapes.write` has such seeds, and no scene of pretraining.
FIRST_SEED = 20_000_000
SEEDS_PER_SPLIT = 1_000_000
STYLES = {"plain": PLAIN, "short": SHORT, "long": LONG}


@dataclass(frozen=True)
class SplitSize:
    """A split: its number of videos by style, and of queries by kind (`data.shapes.bench.queries`)."""

    videos: Mapping[str, int]
    queries: Mapping[str, int]


SIZES: Mapping[str, SplitSize] = {
    "train": SplitSize(
        {"plain": 120, "short": 20, "long": 20},
        {"visual": 190, "caption": 130, "several": 90, "short": 60, "long": 60, "keywords": 70},
    ),
    "val": SplitSize(
        {"plain": 24, "short": 5, "long": 5},
        {"visual": 35, "caption": 20, "several": 15, "absent": 30, "short": 10, "long": 10, "keywords": 10},
    ),
    "test": SplitSize(
        {"plain": 200, "short": 50, "long": 50},
        {"visual": 240, "caption": 160, "several": 130, "absent": 170, "short": 100, "long": 100, "keywords": 100},
    ),
}


def make_scenes(split: str, size: SplitSize) -> dict[str, tuple[str, Scene]]:
    """Return the style and the scene of each video of a split, by video id.

    Raises:
      UserError: there is no such style.
    """
    if unknown := set(size.videos) - set(STYLES):
        raise UserError(
            f"videos: there is no style {', '.join(sorted(unknown))}", f"the styles are {', '.join(STYLES)}"
        )
    styles = [style for style, count in size.videos.items() for _ in range(count)]
    first = FIRST_SEED + SPLITS.index(split) * SEEDS_PER_SPLIT
    return {
        video_id(split, number): (style, make_scene(first + number, STYLES[style]))
        for number, style in enumerate(styles)
    }


def write_bench(folder: str | Path, sizes: Mapping[str, SplitSize] = SIZES) -> dict[str, list[Annotation]]:
    """Write the dataset, and return the annotations of its splits; videos that exist are kept.

    Raises:
      UserError: the folder holds another dataset, or a split asks for more queries than its videos hold.
      OSError: a file cannot be written; names it and the remedy.
    """
    folder = Path(folder)
    videos = {split: make_scenes(split, size) for split, size in sizes.items()}
    annotations = {
        split: choose_queries(videos[split], size.queries, SPLITS.index(split)) for split, size in sizes.items()
    }
    check_provenance(folder, {"seed": FIRST_SEED, "world_version": BENCH_VERSION})
    for split, rows in annotations.items():
        write_annotations(folder / f"{split}.jsonl", rows)
    write_videos(folder, {video: scene for scenes in videos.values() for video, (_, scene) in scenes.items()})
    return annotations


def main() -> None:
    """Parse the command line and write the dataset."""
    parser = argparse.ArgumentParser(description="Write the dataset of the benchmark; videos that exist are kept.")
    parser.add_argument("--out", required=True, help="output folder")
    out = parser.parse_args().out
    try:
        annotations = write_bench(out, SIZES)
    except (OSError, ValueError) as error:
        raise SystemExit(f"Error: {error}") from None
    print(f"{out}: {', '.join(f'{len(rows)} {split} queries' for split, rows in annotations.items())}")


if __name__ == "__main__":
    main()
