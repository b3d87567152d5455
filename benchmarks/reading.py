"""Batches read from a prepared folder beside the bare codec: `python -m benchmarks.reading`.

One core. Ours goes from the tables on disk to batches with prompts: records, JPEG, tokens, stacking. The codec decodes
the same bytes, which it has in memory, and keeps nothing. The ratio says which share of the codec's rate remains. A
turn is an epoch, with all that begins with one; it is long, so that this does not count for more than in training.
"""

import tempfile
from collections import deque
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.material import QUERY, example
from benchmarks.paired import Row, Setting, arguments, compare, report
from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.input_pipeline import InputConfig, make_iterator
from calce_jax.input_pipeline.dataset import Example, open_tables
from calce_jax.moments.annotations import Annotation
from calce_jax.text.tokenizers import load_bert, load_t5
from data import tokenizers

FRAMES, SIZE, CAPTIONS = 75, 224, 16


def main() -> None:
    """Measure and write it down."""
    setting, given = arguments(__doc__, threads=1, videos={"type": int, "default": 128})
    rows = []
    # Cropping takes so long that fewer videos tell as much.
    for videos, augment in ((given.videos, False), (-(-given.videos // 8), True)):
        with tempfile.TemporaryDirectory() as folder:
            write_tables(Path(folder), videos)
            rows.append(reading(setting, Path(folder), augment=augment))
    report(setting, "reading", rows)


def write_tables(folder: Path, videos: int) -> None:
    """Write the tables of so many videos, with a query each."""
    shown = example(FRAMES, SIZE, CAPTIONS)
    asked = [
        Annotation(number, f"v{number}", QUERY, shown.items, shown.duration, shown.windows.tolist())
        for number in range(videos)
    ]

    def record(video: str) -> VideoRecord:
        return VideoRecord(
            video,
            shown.total,
            shown.rate,
            shown.duration,
            shown.indices,
            shown.times,
            shown.keyframes,
            shown.captions,
        )

    build_tables(folder, "qvhighlights", {"train": asked}, record)


def reading(setting: Setting, folder: Path, *, augment: bool) -> Row:
    """Compare an epoch with decoding alone."""
    config = InputConfig(
        folder=str(folder),
        split="train",
        stage=1,
        frames=FRAMES,
        image_size=SIZE,
        batch_size=4,
        captions=64,
        words=64,
        text_tokens=2304,
        windows=32,
        answer_tokens=144,
        augment=augment,
    )
    places = tokenizers.__path__[0]
    t5, bert = load_t5(f"{places}/tiny_t5"), load_bert(f"{places}/tiny_bert")
    examples: list[Example] = list(open_tables(folder, "train"))
    jpegs = [keyframe for each in examples for keyframe in each.keyframes]

    def ours() -> np.ndarray:
        batches = make_iterator(config, t5, bert)
        return deque((batch.frames for batch in batches), maxlen=1).pop()

    def codec() -> np.ndarray:
        for content in jpegs[:-1]:
            simplejpeg.decode_jpeg(content, colorspace="RGB")
        return simplejpeg.decode_jpeg(jpegs[-1], colorspace="RGB")

    return compare(
        setting,
        f"batches of {FRAMES} frames a video, {'cropped' if augment else 'whole'}",
        ours,
        codec,
        other="simplejpeg alone",
        agreement=lambda a, b: "cropped" if augment else f"pixels the same: {(a[-1, -1] == b).all()}",
        frames=len(jpegs),
        notes={"kB a frame": sum(map(len, jpegs)) / len(jpegs) / 1e3},
    )


if __name__ == "__main__":
    main()
