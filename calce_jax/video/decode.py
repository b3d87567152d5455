"""Decoding video files: frame indices, timestamps, and frames resized to small squares.

Frames are the first of n equal intervals, as in the original, and resized as its decoder (decord) does: bilinear,
ignoring the aspect ratio, bit-exact. A video is decoded from the first frame to the last, so that frame indices are
exact whatever the container says; one full-size frame is in memory at a time.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from math import inf
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
from calce_jax.video.clock import MIN_LATE_START_S, PlayerClock, clock_origin
from calce_jax.video.container import (
    AUDIO_FORMATS,
    REFETCH_REMEDY,
    VIDEO_FORMATS,
    MediaError,
    check_not_truncated,
    decoder_errors,
    header_duration,
    open_container,
)

# Seconds by which two times that mean the same may differ.
TIME_TOLERANCE = 1e-3
SOUND_ALONE = ("it holds sound and no picture", "`calce caption` writes down what is said in it")


class VideoError(MediaError):
    """A video that cannot be used; the message names the file, what is wrong with it and the remedy."""


@dataclass(frozen=True)
class VideoFrames:
    """Frames taken from a video.

    Attributes:
      frames: RGB, in order of time; all frames of a video that has fewer than requested.
      indices: frame indices in the video.
      times: seconds on a player's clock (`calce_jax.video.clock`); the first frame may be later than 0.
      duration: seconds; the time at which the last frame ends.
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

    A frame's time is its index over the average rate, as in the original, after the time at which the picture begins.
    Where the frame rate varies so much that this is more than a frame off the presentation time, "default" returns
    presentation times: annotated windows are in seconds of playback.

    Args:
      path: a file in one of `VIDEO_FORMATS`, of any codec that FFmpeg reads.
      num_frames: n; a shorter video gives all its frames.
      size: height and width of the returned frames, pixels.
      behaviour: "default" applies the file's display rotation; "reference" ignores it, varying frame rates, and that a
        picture begins later than the sound.
      threads: decoder threads; 0 lets FFmpeg choose.

    Raises:
      VideoError: the file is missing, is not a video, has no frames, or ends more than a second before its header says.
    """
    with decoder_errors(path, VideoError):
        return _read_frames(path, num_frames, size, behaviour, threads)


def _read_frames(
    path: str | os.PathLike[str], num_frames: int, size: int, behaviour: Behaviour, threads: int
) -> VideoFrames:
    with open_video(path, threads) as (container, stream):
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
    begin = decoded.timestamps[0]
    timestamps, end = np.asarray(decoded.timestamps) - begin, decoded.end - begin
    if decoded.is_timed:
        check_not_truncated(path, decoded.header_duration, end, VideoError)
    rate = decoded.rate or (total / end if end else None)
    if rate is None:
        raise VideoError(path, "neither its header nor its frames give a frame rate", "re-encode it with ffmpeg -r")
    times, duration = indices / rate, total / rate
    if behaviour == "default":
        if np.abs(timestamps - np.arange(total) / rate).max() > 1 / rate and end:
            times, duration, rate = timestamps[indices], end, total / end
        if begin >= MIN_LATE_START_S:
            times, duration = times + begin, duration + begin
    return VideoFrames(decoded.frames, indices, times.astype(np.float32), duration, total, rate)


def frames_at(
    path: str | os.PathLike[str], seconds: Sequence[float], size: int = 224, *, threads: int = 0
) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    """Yield the RGB frame that is shown at each of the given times, resized as by `read_frames`.

    The video is decoded once, with one full-size frame in memory.

    Args:
      path: see `read_frames`.
      seconds: ascending, on a player's clock. Times before the first frame give the first, times after the last frame
        the last.
      size: height and width of the returned frames, pixels.
      threads: decoder threads; 0 lets FFmpeg choose.

    Raises:
      VideoError: as for `read_frames`; a truncated file is noticed at its end.
    """
    with decoder_errors(path, VideoError):
        yield from _frames_at(path, seconds, size, threads)


def _frames_at(
    path: str | os.PathLike[str], seconds: Sequence[float], size: int, threads: int
) -> Iterator[UInt8[np.ndarray, "size size 3"]]:
    pending_times, begin, end, current, is_timed = deque(seconds), 0.0, 0.0, None, True
    with open_video(path, threads) as (container, stream):
        expected, resize = header_duration(container, stream), _Resizer(size)
        for timed in decode_frames(container, stream):
            begin, is_timed = (timed.second if current is None else begin), is_timed and timed.frame.pts is not None
            while current is not None and pending_times and pending_times[0] < timed.second - TIME_TOLERANCE:
                pending_times.popleft()
                yield _rotate(resize(current), current)
            current, end = timed.frame, timed.end
        if current is None:
            raise VideoError(path, "no frame of it can be decoded", REFETCH_REMEDY)
        if is_timed:
            check_not_truncated(path, expected, end - begin, VideoError)
        last = _rotate(resize(current), current)
        yield from (last for _ in pending_times)


def video_duration(path: str | os.PathLike[str]) -> float:
    """Return the time at which a video's last frame ends, in seconds on a player's clock.

    The header of an MP4 gives it; the packets of other files are read, and nothing is decoded: their headers may be of
    another cut, or of one of several recordings that were joined.

    Raises:
      VideoError: the file is missing, is not a video, or has neither timestamps nor a frame rate.
    """
    with decoder_errors(path, VideoError), open_video(path, threads=1) as (container, stream):
        # A file of fragments has no frames in its header.
        if stream.duration and stream.frames and stream.time_base and "mp4" in container.format.name:
            begin = float((stream.start_time or 0) * stream.time_base) - clock_origin(container)
            duration = begin + float(stream.duration * stream.time_base)
        else:
            duration = _packets_end(container, stream)
    if duration <= 0:
        raise VideoError(path, "neither its header nor its frames give a duration", REFETCH_REMEDY)
    return duration


def _packets_end(container: InputContainer, stream: VideoStream) -> float:
    """Return the time at which the last packet's picture ends, 0 if no packet has a time or a duration."""
    clock, period, end = PlayerClock(container, stream), _frame_period(stream), 0.0
    for packet in _packets(container, stream):
        duration = _ticks_to_seconds(packet.duration or None, stream.time_base) or period
        # Decoding times rise; presentation times do not, where frames refer to later ones.
        rising = packet.pts if packet.dts is None else packet.dts
        second = clock.seconds(rising, duration)
        if packet.pts is not None and rising is not None:
            second += _ticks_to_seconds(packet.pts - rising, stream.time_base) or 0.0
        end = max(end, second + duration)
    return round(end, 6)


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
def _open_if_video(path: str | os.PathLike[str]) -> Iterator[InputContainer]:
    """Open a file in one of `VIDEO_FORMATS`, and close it afterwards.

    Raises:
      VideoError: as for `open_container`; a file of sound alone is told from one that is damaged.
    """
    with ExitStack() as stack:
        try:
            container = stack.enter_context(open_container(path, VIDEO_FORMATS, VideoError, "it is not a video"))
        except VideoError as error:
            if error.__cause__ is not None and _holds_sound(path):
                raise VideoError(path, *SOUND_ALONE) from error.__cause__
            raise
        yield container


def _holds_sound(path: str | os.PathLike[str]) -> bool:
    """Return whether a file that is no video has an audio stream."""
    try:
        with open_container(path, AUDIO_FORMATS, VideoError, "it is no audio") as container:
            return bool(container.streams.audio)
    except VideoError:
        return False


@contextmanager
def open_video(path: str | os.PathLike[str], threads: int) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a video, and close it afterwards; yields the file and its best stream that is no cover picture.

    Raises:
      VideoError: the file is missing, is not a video, or FFmpeg has no decoder for it.
    """
    with _open_if_video(path) as container:
        # The cover picture of an audio file is stored as a video stream of one frame.
        streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            if container.streams.audio:
                raise VideoError(path, *SOUND_ALONE)
            raise VideoError(path, "it has no video stream, only text or a cover picture", "choose another file")
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


class TimedFrame(NamedTuple):
    """A frame, with the seconds on a player's clock at which it begins and ends."""

    frame: av.VideoFrame
    second: float
    end: float


def decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[TimedFrame]:
    """Yield the stream's frames in order of time, without those that are too damaged to decode."""
    clock, period, second = PlayerClock(container, stream), _frame_period(stream), -inf
    for frame in _decode_packets(container, stream):
        # In the stream's time base: the last frames out of the decoder have none of their own.
        duration = _ticks_to_seconds(frame.duration or None, stream.time_base) or period
        second = max(clock.seconds(frame.pts, duration), second)
        yield TimedFrame(frame, second, second + duration)


def _decode_packets(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    try:
        packets: Iterator[av.Packet | None] = container.demux(stream)
        for packet in packets:
            if packet is not None and packet.size:
                yield from _decode_packet(stream, packet)
    except FFmpegError:
        pass
    yield from _decode_packet(stream, None)


def _frame_period(stream: VideoStream) -> float:
    """Return the seconds of a frame at the rate of the header, 0 if that has none."""
    rate = stream.average_rate or stream.guessed_rate
    return float(1 / rate) if rate else 0.0


def _decode_packet(stream: VideoStream, packet: av.Packet | None) -> Sequence[av.VideoFrame]:
    try:
        return stream.decode(packet)
    except FFmpegError:
        return ()


class _DecodedVideo(NamedTuple):
    frames: np.ndarray  # uint8 (n, size, size, 3)
    timestamps: list[float]  # of every frame of the video, seconds on a player's clock
    end: float  # of the last frame, seconds
    is_timed: bool  # whether every frame has a timestamp of its own
    rate: float | None  # frames per second, from the header
    header_duration: float | None  # seconds


def _decode_video(
    path: str | os.PathLike[str], indices: np.ndarray, size: int, threads: int, *, rotate: bool
) -> _DecodedVideo:
    """Decode all frames of a video, and keep those at `indices`, resized to `size` x `size`."""
    slots = {int(index): slot for slot, index in enumerate(indices)}
    frames = np.zeros((len(indices), size, size, 3), np.uint8)
    timestamps: list[float] = []
    end, is_timed = 0.0, True
    with open_video(path, threads) as (container, stream):
        rate = stream.average_rate or stream.guessed_rate
        expected = header_duration(container, stream)
        resize = _Resizer(size)
        for index, (frame, second, end) in enumerate(decode_frames(container, stream)):  # noqa: B007
            if index in slots:
                try:
                    resized = resize(frame)
                except FFmpegError as error:
                    reason = f"the pixel format of frame {index} cannot be converted to RGB ({error.strerror})"
                    raise VideoError(path, reason, "re-encode it as H.264 with ffmpeg") from error
                frames[slots[index]] = _rotate(resized, frame) if rotate else resized
            timestamps.append(second)
            is_timed = is_timed and frame.pts is not None
    return _DecodedVideo(frames, timestamps, end, is_timed, float(rate) if rate else None, expected)


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
