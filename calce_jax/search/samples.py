"""The sample videos of the package: scenes of the shapes dataset that are in no training split."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path


@dataclass(frozen=True)
class Sample:
    """A sample video.

    Attributes:
      name: shown in the web form.
      video: the video file; its captions are in the .srt file beside it.
      queries: sentences, each with a moment in the video.
    """

    name: str
    video: Path
    queries: Sequence[str]


def load_samples() -> list[Sample]:
    """Return the sample videos of the package."""
    folder = Path(str(files("calce_jax"))) / "assets" / "tiny" / "samples"
    rows = [json.loads(line) for line in (folder / "annotations.jsonl").read_text(encoding="utf-8").splitlines()]
    videos = dict.fromkeys(row["vid"] for row in rows)
    return [
        Sample(f"shapes {number}", folder / f"{video}.mp4", [row["query"] for row in rows if row["vid"] == video])
        for number, video in enumerate(videos, 1)
    ]
