"""Writing small videos for tests, in various containers, codecs and timings."""

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

GREY = 8  # frame i has the grey level i * GREY, at most 255
ASS_HEADER = b"[Script Info]\r\nScriptType: v4.00+\r\n\r\n[Events]\r\n"


@dataclass(frozen=True)
class SubtitleStreamSpec:
    """A subtitle stream to write: start and end of each event in seconds from the first picture, and its text."""

    codec: str  # subrip, mov_text, webvtt or ass
    events: list[tuple[float, float, str]]
    language: str = "eng"
    title: str = ""
    disposition: Disposition | None = None


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
    layout: str = "mono",
    pixel_aspect: Fraction | None = None,
    cover: bool = False,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    """Write frames of increasing grey levels to a file and return its path.

    Args:
      path: the file; its suffix selects the container.
      frames: number of frames.
      rate: frames per second.
      size: width and height, pixels.
      codec: FFmpeg's name of the encoder.
      pixels: FFmpeg's name of the pixel format.
      ticks: timestamp of each frame in 1 / rate seconds; 0, 1, 2, ... by default.
      rotation: display rotation, degrees counterclockwise.
      white_quarter: whether all frames are black with a white upper left quarter.
      noise: whether frames are random, which takes more bytes.
      sound: whether to add an audio stream with a second of silence.
      layout: FFmpeg's name of the channel layout of the sound.
      pixel_aspect: width of a pixel over its height; not written by default.
      cover: whether to add a cover picture before the video stream.
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
        if pixel_aspect:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if rotation:
            stream.set_display_rotation(rotation)
        audio_stream = output.add_stream("aac", rate=8000, layout=layout) if sound else None
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
            channels = audio_stream.layout.nb_channels
            silence = av.AudioFrame.from_ndarray(np.zeros((channels, 8000), np.float32), "fltp", layout)
            silence.rate, silence.time_base, silence.pts = 8000, Fraction(1, 8000), 0
            output.mux(audio_stream.encode(silence))
            output.mux(audio_stream.encode())
    return path


def write_subtitled_clip(path: Path, tracks: list[SubtitleStreamSpec], *, seconds: int = 3, start: float = 0.0) -> Path:
    """Write a video with text subtitles to a file and return its path.

    Args:
      path: the file; its suffix selects the container.
      tracks: the subtitle streams.
      seconds: the length of the video.
      start: the timestamp of the first picture, in seconds.
    """
    ticks = Fraction(1, 1000)
    with av.open(str(path), "w") as output:
        video = output.add_stream("libvpx" if path.suffix == ".webm" else "libx264", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 10)
        streams = []
        for track in tracks:
            stream = output.add_mux_stream(track.codec) if track.codec != "ass" else output.add_stream("ass")
            if track.codec == "ass":
                stream.codec_context.subtitle_header = ASS_HEADER
                stream.codec_context.time_base = ticks
            stream.time_base = ticks
            if track.disposition is not None:
                stream.disposition = track.disposition
            stream.metadata.update({"language": track.language, "title": track.title})
            streams.append(stream)
        for index in range(10 * seconds):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), index, np.uint8), "rgb24")
            frame.pts, frame.time_base = index + round(start * 10), Fraction(1, 10)
            output.mux(video.encode(frame))
        output.mux(video.encode())
        for stream, track in zip(streams, tracks, strict=True):
            for second, end, text in track.events:
                first, duration = round((start + second) * 1000), round((end - second) * 1000)
                if track.codec == "ass":
                    event = av.subtitles.subtitle.SubtitleSet.create(text.encode(), 0, duration, first)
                    packet = stream.codec_context.encode_subtitle(event)
                else:
                    encoded = text.encode()
                    length = len(encoded).to_bytes(2, "big") if track.codec == "mov_text" else b""
                    packet = av.Packet(length + encoded)
                packet.stream, packet.time_base, packet.duration = stream, ticks, duration
                packet.pts = packet.dts = first
                output.mux(packet)
    return path
