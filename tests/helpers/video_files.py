"""Small videos written for tests, with whatever containers and codecs can do to one."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

GREY = 8  # frame i is a grey of i * GREY, up to white


def write_clip(
    path: Path,
    *,
    frames: int,
    rate: int,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    ticks: list[int] | None = None,
    rotation: int = 0,
    white_quarter: bool = False,
    noise: bool = False,
    sound: bool = False,
    cover: bool = False,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write frames of rising greys and return the path.

    Args:
      path: its suffix names the container.
      frames: how many.
      rate: frames a second.
      size: width and height.
      codec: FFmpeg's name of the encoder.
      pixels: FFmpeg's name of the pixel format.
      ticks: when each frame is shown, in 1 / rate seconds; one after the other unless given.
      rotation: degrees counterclockwise by which players are asked to turn the picture.
      quarter: the upper left quarter is white and the rest black, in all frames.
      noise: noise instead of greys, which takes more bytes.
      sound: a second of silence beside it.
      cover: a picture attached before the video.
      options: of the encoder.
      container: options of the container.
    """
    path.parent.mkdir(exist_ok=True)
    width, height = size
    random = np.random.default_rng(0)
    with av.open(str(path), "w", options=container or {}) as output:
        if cover:
            cover_stream = output.add_stream("mjpeg", rate=1)
            cover_stream.width, cover_stream.height, cover_stream.pix_fmt = 96, 96, "yuvj420p"
            cover_stream.disposition = av.stream.Disposition.attached_pic
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation:
            stream.set_display_rotation(rotation)
        audio_stream = output.add_stream("aac", rate=8000, layout="mono") if sound else None
        if cover:
            output.mux(cover_stream.encode(av.VideoFrame.from_ndarray(np.full((96, 96, 3), 200, np.uint8), "rgb24")))
        for index in range(frames):
            picture = np.full((height, width, 3), min(index * GREY, 255), np.uint8)
            if noise:
                picture = random.integers(0, 256, picture.shape, np.uint8)
            if white_quarter:
                picture[:] = 0
                picture[: height // 2, : width // 2] = 255
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = ticks[index] if ticks else index, Fraction(1, rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if audio_stream is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
            silence.rate, silence.time_base, silence.pts = 8000, Fraction(1, 8000), 0
            output.mux(audio_stream.encode(silence))
            output.mux(audio_stream.encode())
    return path
