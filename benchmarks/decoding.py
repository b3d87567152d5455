"""Decoding of images and videos against other decoders: `python -m benchmarks.decoding`.

JPEG against Pillow: the 75 frames of a prepared video. Video against a loop with PyAV and Pillow, and against decord if
installed: 75 frames of a minute of H.264 at 640 x 360, resized to 224 pixels. torchvision no longer reads videos, and
decodes JPEG with the library that we use too.
"""

import importlib.util
import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image

from benchmarks.material import noise_images, write_video
from benchmarks.paired import BenchmarkSettings, ComparisonRow, compare, parse_args, report
from calce_jax.video.decode import decode_jpeg, encode_jpeg, head_indices, read_frames

FRAMES, SIZE = 75, 224


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(__doc__, seconds={"type": int, "default": 60})
    rows = [compare_jpeg(settings)]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        write_video(video, args.seconds)
        others: dict[str, Callable[[], np.ndarray]] = {
            "PyAV and Pillow": partial(decode_with_pyav, video, settings.threads)
        }
        if importlib.util.find_spec("decord"):
            others["decord"] = partial(decode_with_decord, video, settings.threads)
        rows += [compare_video(settings, video, name, theirs) for name, theirs in others.items()]
    report(settings, "decoding", rows)


def compare_jpeg(settings: BenchmarkSettings) -> ComparisonRow:
    """Compare decoders of images on one core; neither uses threads."""
    frames = encode_jpeg(noise_images(FRAMES, SIZE, SIZE))
    return compare(
        settings,
        f"{FRAMES} JPEG images of {SIZE} pixels",
        lambda: np.stack([decode_jpeg(frame) for frame in frames]),
        lambda: np.stack([np.asarray(Image.open(io.BytesIO(frame))) for frame in frames]),
        other="Pillow",
        agreement=pixel_difference,
        frames=FRAMES,
        notes={"kB an image": sum(map(len, frames)) / FRAMES / 1e3},
    )


def compare_video(
    settings: BenchmarkSettings, video: Path, name: str, theirs: Callable[[], np.ndarray]
) -> ComparisonRow:
    """Compare readers of one video."""
    return compare(
        settings,
        f"{FRAMES} frames of a video, {settings.threads} threads",
        lambda: read_frames(video, FRAMES, SIZE, threads=settings.threads).frames,
        theirs,
        other=name,
        agreement=pixel_difference,
        notes={"MB of video": video.stat().st_size / 1e6},
    )


def decode_with_pyav(video: Path, threads: int) -> np.ndarray:
    """Decode all frames in order and keep the selected ones."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "AUTO", threads
        selected = set(head_indices(stream.frames, FRAMES).tolist())
        images = [frame.to_image() for number, frame in enumerate(container.decode(stream)) if number in selected]
    return np.stack([np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for image in images])


def decode_with_decord(video: Path, threads: int) -> np.ndarray:
    """Seek, decode and resize with decord."""
    import decord  # noqa: PLC0415  # pyright: ignore[reportMissingImports]

    reader = decord.VideoReader(str(video), width=SIZE, height=SIZE, num_threads=threads)
    return reader.get_batch(head_indices(len(reader), FRAMES).tolist()).asnumpy()


def pixel_difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    """Return the mean difference in words; Pillow filters when it shrinks, so images may differ."""
    return f"images {np.abs(ours.astype(np.int16) - theirs).mean():.2f} of 255 grey levels apart on average"


if __name__ == "__main__":
    main()
