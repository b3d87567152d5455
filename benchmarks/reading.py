"""The input pipeline against its JPEG codec alone: `python -m benchmarks.reading`.

On one core. Ours reads the tables and makes batches with prompts: records, JPEG, tokens, stacking. The codec decodes
the same bytes from memory and discards the pixels. The ratio is the share of the codec's throughput that remains. A
round is an epoch including its start, long enough that the start weighs no more than in training. Then ours with
augmentation against ours without: what drawing the crops takes, which the device cuts out.
"""

import tempfile
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg

from benchmarks.material import QUERY, make_example, tiny_tokenizers
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, parse_args, report
from calce_jax.batch import Batch
from calce_jax.datasets.tables import VideoRecord, build_tables
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.buffer_pool import retain_freed_memory
from calce_jax.input_pipeline.dataset import open_dataset
from calce_jax.input_pipeline.example import Example
from calce_jax.input_pipeline.input_config import InputConfig
from calce_jax.moments.annotations import Annotation

FRAMES, SIZE, CAPTIONS = 75, 224, 16


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(__doc__, threads=1, videos={"type": int, "default": 128})
    with tempfile.TemporaryDirectory() as folder:
        write_tables(Path(folder), args.videos)
        report(settings, "reading", list(compare_reading(settings, Path(folder))))


def write_tables(folder: Path, videos: int) -> None:
    """Write the tables of `videos` videos with one query each."""
    template = make_example(FRAMES, SIZE, CAPTIONS)
    annotations = [
        Annotation(number, f"v{number}", QUERY, template.items, template.duration, template.windows.tolist())
        for number in range(videos)
    ]

    def record(video: str) -> VideoRecord:
        return VideoRecord(
            video,
            template.total_frames,
            template.fps,
            template.duration,
            template.indices,
            template.times,
            template.keyframes,
            template.captions,
        )

    build_tables(folder, "qvhighlights", {"train": annotations}, record)


def compare_reading(settings: BenchmarkSettings, folder: Path) -> Iterator[ComparisonRow]:
    """Compare an epoch with decoding only, and an epoch with augmentation with one without."""
    retain_freed_memory()  # as `calce train` does
    config = InputConfig(
        folder=str(folder),
        split="train",
        stage=1,
        frames=FRAMES,
        image_size=SIZE,
        batch_size=4,
        max_captions=64,
        bert_tokens=64,
        text_tokens=2304,
        max_windows=32,
        answer_tokens=144,
    )
    tokenizers = tiny_tokenizers()
    examples: list[Example] = list(open_dataset(folder, "train"))
    jpegs = [keyframe for example in examples for keyframe in example.keyframes]

    def read(*, augment: bool) -> Batch:
        batches = make_iterator(replace(config, augment=augment), tokenizers.t5, tokenizers.bert)
        return deque(batches, maxlen=1).pop()

    def codec() -> np.ndarray:
        for content in jpegs[:-1]:
            simplejpeg.decode_jpeg(content, colorspace="RGB")
        return simplejpeg.decode_jpeg(jpegs[-1], colorspace="RGB")

    notes = {"kB a frame": sum(map(len, jpegs)) / len(jpegs) / 1e3}
    yield compare(
        settings,
        f"batches of {FRAMES} frames a video",
        partial(read, augment=False),
        codec,
        other="simplejpeg alone",
        agreement=lambda a, b: f"equal pixels: {(a.frames[a.row_mask][-1, -1] == b).all()}",
        frames=len(jpegs),
        notes=notes,
    )
    yield compare(
        settings,
        "the same with crops to be cut out on the device",
        partial(read, augment=True),
        partial(read, augment=False),
        other="without augmentation",
        agreement=lambda a, b: f"equal pixels: {(a.frames == b.frames).all()}",
        frames=len(jpegs),
        notes=notes,
    )


if __name__ == "__main__":
    main()
