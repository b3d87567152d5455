"""Decoding video files: frame indices, timestamps, and frames resized to small squares.

Frames are the first of n equal intervals, as in the original, and resized as its decoder (decord) does: bilinear,
ignoring the aspect ratio, bit-exact. A video is decoded from the first frame to the last, so that frame indices are
exact whatever the container says; one full-size frame is in memory at a time.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import av
import numpy as np
import simplejpeg
from av.container import InputContainer
from av.error import FFmpegError
from av.filter import Graph
from av.stream import Disposition
from av.video.stream import VideoStream
from jaxtyping import Float, Int, UInt8

from calce_jax.config import Behaviour
from calce_jax.video.container import (
    REFETCH_REMEDY,
    VIDEO_FORMATS,
    MediaError,
    check_not_truncated,
    header_duration,
    open_container,
)

# Seconds by which two times that mean the same may differ.
TIME_TOLERANCE = 1e-3


class VideoError(MediaError):
    """A video that cannot be used; the message names the file, what is wrong with it and the remedy."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames taken from a video.

    Attributes:
      frames: RGB, in order of time; all frames of a video that has fewer than requested.
      indices: frame indices in the video.
      times: seconds from the first frame of the video.
      duration: seconds; total_frames / fps.
      total_frames: number of frames of the video.
      fps: average frame rate.
    """

    frames: UInt8[np.ndarray, "n size size 3"]
    indices: Int[np.ndarray, " n"]
    times: Float[np.ndarray, " n"]
    duration: float
    total_frames: int
    fps: float


def head_indices(num_total: int, num_frames: int) -> Int[np.ndarray, " n"]:
    """Return the first frame index of each of n = min(num_frames, num_total) equal intervals, int64.

    Rounded down in float64 as in the original, with the same errors: 89.99999 becomes 89.

    Raises:
      ValueError: `num_total` < 0 or `num_frames` < 1.
    """
    if num_total < 0 or num_frames < 1:
        raise ValueError(f"cannot take {num_frames} frames of {num_total}; num_frames must be at least one")
    return np.linspace(0, num_total, min(num_frames, num_total) + 1).astype(np.int64)[:-1]


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    size: int = 224,
    *,
    behaviour: Behaviour = "default",
    threads: int = 0,
) -> VideoFrames:
    """Read the first frame of each of n equal intervals.

    A frame's time is its index over the average rate, as in the original. Where the frame rate varies so much that this
    is more than a frame off the presentation time, "default" returns presentation times: annotated windows are in
    seconds of playback.

    Args:
      path: a file in one of `VIDEO_FORMATS`, of any codec that FFmpeg reads.
      num_frames: n; a shorter video gives all its frames.
      size: height and width of the returned frames, pixels.
      behaviour: "default" applies the file's display rotation; "reference" ignores it, and varying frame rates.
      threads: decoder threads; 0 lets FFmpeg choose.

    Raises:
      VideoError: the file is missing, is not a video, has no frames, or ends more than a second before its header says.
    """
    with _open_video(path, threads) as (container, stream):
        expected = sum(1 for _ in _packets(container, stream))
    decoded = _decode_video(path, head_indices(expected, num_frames), size, threads, rotate=behaviour == "default")
    if len(decoded.timestamps) != expected:
        # Some packets hold no frame, or a damaged one; now the number of frames is known.
        indices = head_indices(len(decoded.timestamps), num_frames)
        decoded = _decode_video(path, indices, size, threads, rotate=behaviour == "default")
    total = len(decoded.timestamps)
    if not total:
        raise VideoError(path, "no frame of it can be decoded", REFETCH_REMEDY)

    indices = head_indices(total, num_frames)
    timestamps, end = _relative_timestamps(decoded)
    check_not_truncated(path, decoded.header_duration, end, VideoError)
    rate = decoded.rate or (total / end if end else None)
    if rate is None:
        raise VideoError(path, "neither its header nor its frames give a frame rate", "re-encode it with ffmpeg -r")
    times = indices / rate
    is_variable_rate = timestamps is not None and np.abs(timestamps - np.arange(total) / rate).max() > 1 / rate
    if behaviour == "default" and is_variable_rate and timestamps is not None and end:
        times, rate = timestamps[indices], total / end
    return VideoFrames(decoded.frames, indices, times.astype(np.float32), total / rate, total, rate)


def frames_at(
    path: str | os.PathLike[str], seconds: Sequence[float], size: int = 224, *, threads: int = 0
) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """Yield the RGB frame that is shown at each of the given times, resized as by `read_frames`.

    The video is decoded once, with one full-size frame in memory.

    Args:
      path: see `read_frames`.
      seconds: ascending, from the first frame. Times after the last frame give the last frame.
      size: height and width of the returned frames, pixels.
      threads: decoder threads; 0 lets FFmpeg choose.

    Raises:
      VideoError: as for `read_frames`; a truncated file is noticed at its end.
    """
    pending_times, timestamp, end, current = deque(seconds), 0.0, None, None
    with _open_video(path, threads) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        expected, resize = header_duration(container, stream), _Resizer(size)
        frame_period, first = (float(1 / rate) if rate else 0.0), None
        for index, frame in enumerate(_decode_frames(container, stream)):
            pts_seconds = _ticks_to_seconds(frame.pts, stream.time_base)
            first = pts_seconds if first is None else first
            timestamp = (
                index * frame_period if pts_seconds is None or first is None else max(pts_seconds - first, timestamp)
            )
            end = timestamp + (_ticks_to_seconds(frame.duration or None, stream.time_base) or frame_period)
            while current is not None and pending_times and pending_times[0] < timestamp - TIME_TOLERANCE:
                pending_times.popleft()
                yield _rotate(resize(current), current)
            current = frame
        if current is None or end is None:
            raise VideoError(path, "no frame of it can be decoded", REFETCH_REMEDY)
        check_not_truncated(path, expected, end, VideoError)
        last = _rotate(resize(current), current)
        yield from (last for _ in pending_times)


def video_duration(path: str | os.PathLike[str]) -> float:
    """Return a video's duration in seconds: its header's, or else the time at which its last frame ends.

    Raises:
      VideoError: the file is missing, is not a video, or has no timestamps.
    """
    with _open_video(path, threads=1) as (container, stream):
        duration = header_duration(container, stream)
        if duration is None and stream.time_base is not None:
            spans = [(p.pts, p.pts + (p.duration or 0)) for p in _packets(container, stream) if p.pts is not None]
            if spans:
                first, last = min(start for start, _ in spans), max(end for _, end in spans)
                duration = float((last - first) * stream.time_base)
    if not duration:
        raise VideoError(path, "neither its header nor its frames give a duration", REFETCH_REMEDY)
    return duration


def encode_jpeg(frames: UInt8[np.ndarray, "n H W 3"], quality: int = 95) -> list[bytes]:
    """Encode RGB frames as JPEG with full chroma resolution (4:4:4).

    Measured at quality 95 on 75 frames of each of two films, 224 pixels wide: mean error 0.9 and 1.0 of 255, mean PSNR
    44.9 and 44.6 dB (lowest 43.4), 11 and 13 % of the raw size.
    """
    return [
        simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality, colorspace="RGB", colorsubsampling="444")
        for frame in frames
    ]


def jpeg_size(content: bytes) -> tuple[int, int]:
    """Return (height, width) of a JPEG in pixels, from its header alone.

    Raises:
      ValueError: `content` is not a JPEG.
    """
    height, width, *_ = simplejpeg.decode_jpeg_header(content)
    return int(height), int(width)


def decode_jpeg(content: bytes, out: UInt8[np.ndarray, "H W 3"] | None = None) -> UInt8[np.ndarray, "H W 3"]:
    """Decode a JPEG to RGB.

    Args:
      content: bytes of a JPEG file.
      out: a C-contiguous array of the image's size to write to; a new one by default.

    Raises:
      ValueError: `content` is not a complete JPEG.
    """
    return simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=out)


@contextmanager
def _open_video(path: str | os.PathLike[str], threads: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    with open_container(path, VIDEO_FORMATS, VideoError, "it is not a video") as container:
        # The cover picture of an audio file is stored as a video stream of one frame.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            reason = "it has no video stream, only audio, text or a cover picture"
            raise VideoError(path, reason, "choose another file")
        best = container.streams.best("video")
        stream = best if isinstance(best, VideoStream) and best in streams else streams[0]
        try:
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = threads
        except AttributeError as error:  # no codec context
            reason = "FFmpeg has no decoder for its video stream"
            raise VideoError(path, reason, "re-encode it as H.264 with ffmpeg") from error
        yield container, stream


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[av.Packet]:
    """Yield the stream's packets that hold data and are not discarded, up to the first read error."""
    try:
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard:
                yield packet
    except FFmpegError:
        return


def _decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Yield the stream's frames in order of time, without those that are too damaged to decode."""
    try:
        packets: Iterator[av.Packet | None] = container.demux(stream)
        for packet in packets:
            if packet is not None and packet.size:
                yield from _decode_packet(stream, packet)
    except FFmpegError:
        pass
    yield from _decode_packet(stream, None)


def _decode_packet(stream: VideoStream, packet: av.Packet | None) -> Sequence[av.VideoFrame]:
    try:
        return stream.decode(packet)
    except FFmpegError:
        return ()


class _DecodedVideo(NamedTuple):
    frames: np.ndarray  # uint8 (n, size, size, 3)
    timestamps: list[float | None]  # presentation time of every frame of the video, seconds
    last_duration: float | None  # of the last frame, seconds
    rate: float | None  # frames per second, from the header
    header_duration: float | None  # seconds


def _decode_video(
    path: str | os.PathLike[str], indices: np.ndarray, size: int, threads: int, *, rotate: bool
) -> _DecodedVideo:
    """Decode all frames of a video, and keep those at `indices`, resized to `size` x `size`."""
    slots = {int(index): slot for slot, index in enumerate(indices)}
    frames = np.zeros((len(indices), size, size, 3), np.uint8)
    timestamps: list[float | None] = []
    last_duration: float | None = None
    with _open_video(path, threads) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        expected = header_duration(container, stream)
        resize = _Resizer(size)
        for index, frame in enumerate(_decode_frames(container, stream)):
            if index in slots:
                try:
                    resized = resize(frame)
                except FFmpegError as error:
                    reason = f"the pixel format of frame {index} cannot be converted to RGB ({error.strerror})"
                    raise VideoError(path, reason, "re-encode it as H.264 with ffmpeg") from error
                frames[slots[index]] = _rotate(resized, frame) if rotate else resized
            # In the stream's time base: the last frames out of the decoder have none of their own.
            timestamps.append(_ticks_to_seconds(frame.pts, stream.time_base))
            last_duration = _ticks_to_seconds(frame.duration or None, stream.time_base)
    rate = float(rate) if rate else None
    return _DecodedVideo(frames, timestamps, last_duration or (1 / rate if rate else None), rate, expected)


def _ticks_to_seconds(ticks: int | None, time_base: Any) -> float | None:
    """Return `ticks * time_base` in seconds; a time base is a `Fraction`, or PyAV's own type since PyAV 19."""
    return None if ticks is None or time_base is None else float(ticks * time_base)


def _rotate(resized: np.ndarray, frame: av.VideoFrame) -> np.ndarray:
    """Apply a frame's display rotation, counterclockwise in steps of 90 degrees, to its resized square."""
    return np.rot90(resized, round(frame.rotation / 90))


class _Resizer:
    """Resizes frames with an FFmpeg filter graph, rebuilt where the frame size or pixel format changes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.format: tuple[int, int, str] | None = None
        self.graph = Graph()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Return the frame as RGB uint8 (size, size, 3)."""
        if (frame.width, frame.height, frame.format.name) != self.format:
            self.format = frame.width, frame.height, frame.format.name
            self.graph = Graph()
            self.graph.link_nodes(
                self.graph.add_buffer(
                    width=frame.width,
                    height=frame.height,
                    format=frame.format,
                    time_base=frame.time_base or Fraction(1, 1000),
                ),
                self.graph.add("scale", f"{self.size}:{self.size}:flags=bilinear"),
                self.graph.add("format", "rgb24"),
                self.graph.add("buffersink"),
            ).configure()
        self.graph.vpush(frame)
        return self.graph.vpull().to_ndarray()


def _relative_timestamps(decoded: _DecodedVideo) -> tuple[np.ndarray | None, float | None]:
    """Return each frame's presentation time and the end of the last, seconds from the first; None where unknown."""
    times = [time for time in decoded.timestamps if time is not None]
    if len(times) < len(decoded.timestamps):
        return None, None
    relative = np.asarray(times) - times[0]
    return relative, None if decoded.last_duration is None else float(relative[-1]) + decoded.last_duration
