"""Writing small audio files for tests, in various containers, codecs and layouts."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np


def tone(seconds: float, rate: int, hertz: float = 440.0, loudness: float = 0.3) -> np.ndarray:
    """Return a sine tone, float32 (samples,)."""
    return (loudness * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def music(seconds: float, rate: int) -> np.ndarray:
    """Return decaying chords, two per second, float32 (samples,)."""
    times = np.arange(round(seconds * rate)) / rate
    envelope = np.exp(-4 * (times % 0.5))
    chords = np.array([[262, 330, 392], [220, 262, 330], [175, 220, 262], [196, 247, 294]])[
        (times // 2).astype(int) % 4
    ]
    return (0.12 * envelope * np.sin(2 * np.pi * chords.T * times).sum(axis=0)).astype(np.float32)


def write_audio(
    path: Path,
    channels: np.ndarray,
    *,
    rate: int,
    layout: str = "mono",
    codec: str | None = None,
    start_second: float = 0.0,
    gap: tuple[float, float] | None = None,
    pictures: int = 0,
) -> Path:
    """Write samples to a file and return its path.

    Args:
      path: the file; its suffix selects the container.
      channels: float (channels, n) or (n,).
      rate: sample rate.
      layout: FFmpeg's name of the channel layout.
      codec: FFmpeg's name of the encoder; 16-bit PCM by default.
      start_second: timestamp of the first sample.
      gap: start and length, in seconds, of a part that is not written.
      pictures: number of black video frames of a second each.
    """
    channels = np.atleast_2d(channels)
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec or "pcm_s16le", rate=rate, layout=layout)
        video_stream = None
        if pictures:
            video_stream = output.add_stream("libx264", rate=1)
            video_stream.width, video_stream.height, video_stream.pix_fmt = 64, 48, "yuv420p"
        size = stream.codec_context.frame_size or 1024
        for offset in range(0, channels.shape[1], size):
            second = offset / rate
            if gap and gap[0] <= second < sum(gap):
                continue
            samples = channels[:, offset : offset + size]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), "fltp", layout)
            frame.rate, frame.time_base = rate, Fraction(1, rate)
            frame.pts = offset + round(start_second * rate)
            if stream.format.name != "fltp":
                (frame,) = av.AudioResampler(stream.format.name, layout, rate).resample(frame)
                frame.pts = offset + round(start_second * rate)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        for number in range(pictures):
            picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            picture.pts, picture.time_base = number, Fraction(1, 1)
            output.mux(video_stream.encode(picture))
        if video_stream:
            output.mux(video_stream.encode())
    return path
