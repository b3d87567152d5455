"""Videos that the app offers to try: of the world of shapes, drawn when it starts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data.shapes.write import write_shapes

SEED = 31  # of scenes that no model was trained on


@dataclass(frozen=True)
class Sample:
    """A video: its name, its file with captions beside it, and queries about it."""

    name: str
    video: Path
    queries: Sequence[str]


def draw_samples(folder: Path, count: int = 2) -> list[Sample]:
    """Draw so many videos into a folder."""
    write_shapes(folder, {"test": count}, seed=SEED)
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    samples = []
    for number, name in enumerate(dict.fromkeys(row["vid"] for row in rows), 1):
        video = folder / "videos" / f"{name}.mp4"
        (folder / "srts" / f"{name}.srt").rename(video.with_suffix(".srt"))
        samples.append(Sample(f"shapes {number}", video, [row["query"] for row in rows if row["vid"] == name]))
    return samples
