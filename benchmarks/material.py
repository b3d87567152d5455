"""Synthetic inputs of benchmarks: images, a video, a query about it, and the tiny tokenizers."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from calce_jax.config import packaged_path
from calce_jax.input_pipeline.example import Example
from calce_jax.storage.atomic_files import atomic_write
from calce_jax.text.tokenizers import Tokenizers, load_bert, load_t5
from calce_jax.video.decode import encode_jpeg

TINY_ASSETS = "calce_jax/assets/tiny"
SECONDS_PER_FRAME = 2.0
QUERY = "a woman in a red coat walks her dog along the river before it starts to rain"
CAPTION_TEXT = "and this is where we stopped to look at the old bridge"


def noise_images(count: int, height: int, width: int) -> np.ndarray:
    """Return RGB uint8 (count, height, width, 3): noise of all scales, drifting to the left.

    At JPEG quality 95 they compress to 12 % of their size, like frames of real videos.
    """
    rng, clouds = np.random.default_rng(0), np.zeros((height, 2 * width, 3), np.float32)
    for level in range(8):
        cells = (-(-height // 2**level), -(-2 * width // 2**level), 3)
        coarse = rng.standard_normal(cells, np.float32).repeat(2**level, 0).repeat(2**level, 1)
        clouds += coarse[:height, : 2 * width] * 1.7**level
    clouds = (128 + 45 / clouds.std() * clouds).clip(0, 255).astype(np.uint8)
    step = max(width // count, 1)
    return np.stack([np.roll(clouds, -number * step, axis=1)[:, :width] for number in range(count)])


def make_example(frames: int, size: int, captions: int) -> Example:
    """Return a query about a video of `frames` frames of `size` pixels with `captions` captions."""
    duration = frames * SECONDS_PER_FRAME
    caption_rows = [
        (start, start + 4.0, f"{CAPTION_TEXT} {start:.0f}") for start in np.linspace(0.0, duration - 5.0, captions)
    ]
    return Example(
        qid="q0",
        video="v0",
        video_row=0,
        query=QUERY,
        items=["woman", "red coat", "dog", "river"],
        duration=duration,
        windows=np.array([[10.0, 24.0]]),
        stage1_windows=None,
        kind=None,
        keyframes=encode_jpeg(noise_images(frames, size, size)),
        indices=np.arange(frames, dtype=np.int32),
        times=np.arange(frames, dtype=np.float32) * SECONDS_PER_FRAME,
        total_frames=frames,
        fps=1 / SECONDS_PER_FRAME,
        captions=caption_rows,
    )


def tiny_tokenizers() -> Tokenizers:
    """Return the tokenizers of the tiny model."""
    folder = packaged_path(TINY_ASSETS)
    return Tokenizers(load_t5(folder / "t5"), load_bert(folder / "bert"))


def write_video(path: Path, seconds: int, *, fps: int = 25, height: int = 360, width: int = 640) -> None:
    """Write an H.264 video of drifting noise, with the default settings of x264."""
    images = noise_images(fps, height, width)
    with atomic_write(path) as partial_path, av.open(str(partial_path), "w", format="mp4") as file:
        stream = file.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(seconds * fps):
            frame = av.VideoFrame.from_ndarray(images[number % fps], "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
