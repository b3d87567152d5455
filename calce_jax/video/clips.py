"""Thumbnails and clips cut from a video, for reports and search pages."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from calce_jax.storage.atomic_files import atomic_write
from calce_jax.video.container import VIDEO_FORMATS, open_container
from calce_jax.video.decode import TIME_TOLERANCE, VideoError, encode_jpeg

# Up to about one group of pictures ahead, decoding on is faster than seeking.
MAX_DECODE_AHEAD_S = 10.0
AUDIO_RATE = 48_000


def thumbnails_at(video: str | Path, seconds: Sequence[float], height: int = 112) -> list[bytes]:
    """Return a JPEG of the frame shown at about each of the given times, in the video's aspect ratio.

    Times far ahead are reached by seeking to the key frame before them.

    Args:
      video: a file that `calce_jax.video.decode` reads.
      seconds: ascending, from the first frame.
      height: of the JPEGs, pixels.

    Raises:
      VideoError: the file is missing, is not a video, or no frame of it can be decoded.
    """
    thumbnails: list[bytes] = []
    with _open(video) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise VideoError(video, "it has no video stream", "choose another file")
        stream.thread_type = "AUTO"
        origin = _start_time(stream)
        frames, current = _decode_frames(container, stream), None
        upcoming = next(frames, None)
        for second in seconds:
            if upcoming is not None and second - _frame_time(upcoming, origin) > MAX_DECODE_AHEAD_S:
                try:
                    container.seek(int((origin + second) * av.time_base))
                    frames = _decode_frames(container, stream)
                    current, upcoming = None, next(frames, None)
                except FFmpegError:  # a file without an index
                    pass
            while upcoming is not None and (
                current is None or _frame_time(upcoming, origin) <= second + TIME_TOLERANCE
            ):
                current, upcoming = upcoming, next(frames, None)
            if current is None:
                raise VideoError(video, "no frame of it can be decoded", "re-encode it with ffmpeg")
            thumbnails.append(_jpeg(current, height, float(stream.sample_aspect_ratio or 1)))
    return thumbnails


def cut_clip(video: str | Path, start: float, end: float, out: str | Path) -> None:
    """Write the part of a video from `start` to `end`, in seconds, as an MP4 of H.264 and AAC; exact to the frame.

    Raises:
      VideoError: the video cannot be read, or has no frame in that part.
      OSError: `out` cannot be written.
    """
    with atomic_write(out) as tmp_path, _open(video) as source:
        with av.open(str(tmp_path), "w", format="mp4", options={"movflags": "+faststart"}) as target:
            num_frames = _transcode(source, target, start, end)
        if not num_frames:
            raise VideoError(video, f"there is no frame from {start:.1f} s to {end:.1f} s", "search it again")


def _transcode(source: InputContainer, target: OutputContainer, start: float, end: float) -> int:
    """Encode the video and audio between two times, and return the number of video frames."""
    video_stream, audio_stream = source.streams.best("video"), source.streams.best("audio")
    assert isinstance(video_stream, VideoStream)
    video_stream.thread_type = "AUTO"
    origin = _start_time(video_stream)
    source.seek(int((origin + max(start, 0.0)) * av.time_base))
    rate = video_stream.average_rate or Fraction(25)
    video_out = target.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
    video_out.pix_fmt = "yuv420p"
    video_out.time_base = Fraction(1, 90_000)
    audio_out = target.add_stream("aac", rate=AUDIO_RATE) if isinstance(audio_stream, AudioStream) else None
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=AUDIO_RATE)
    num_frames, num_samples = 0, 0
    pending_audio: list[av.Packet] = []  # held back until the first frame tells the picture size
    open_streams = {stream.index: stream for stream in (video_stream, audio_stream) if stream is not None}
    packets: Iterator[av.Packet] = source.demux(list(open_streams.values()))
    for packet in packets:
        if packet.stream.index not in open_streams:
            continue
        for frame in _decode_packet(packet):
            time = _frame_time(frame, origin)
            if time >= end - TIME_TOLERANCE:
                open_streams.pop(packet.stream.index, None)
                break
            if time < start - TIME_TOLERANCE:
                continue
            if isinstance(frame, av.VideoFrame):
                rotated = _apply_rotation(frame)
                if not num_frames:
                    video_out.width, video_out.height = rotated.width, rotated.height
                rotated.pts, rotated.time_base = round((time - start) * 90_000), Fraction(1, 90_000)
                target.mux([*video_out.encode(rotated), *pending_audio])
                pending_audio.clear()
                num_frames += 1
            elif audio_out is not None:
                for resampled in resampler.resample(frame):
                    resampled.pts, resampled.time_base = num_samples, Fraction(1, AUDIO_RATE)
                    num_samples += resampled.samples
                    encoded = audio_out.encode(resampled)
                    target.mux(encoded) if num_frames else pending_audio.extend(encoded)
        if not open_streams:
            break
    if num_frames:
        target.mux(video_out.encode(None))
    if num_samples and audio_out is not None:
        target.mux(audio_out.encode(None))
    return num_frames


def _open(video: str | Path) -> AbstractContextManager[InputContainer]:
    return open_container(video, VIDEO_FORMATS, VideoError, "it is not a video")


def _start_time(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _frame_time(frame: av.VideoFrame | av.AudioFrame, origin: float) -> float:
    return 0.0 if frame.time is None else frame.time - origin


def _decode_frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    try:
        yield from container.decode(stream)
    except FFmpegError:  # damaged from here on
        return


def _decode_packet(packet: av.Packet) -> Sequence[av.VideoFrame | av.AudioFrame]:
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame | av.AudioFrame)]
    except FFmpegError:
        return ()


def _apply_rotation(frame: av.VideoFrame) -> av.VideoFrame:
    """Apply a frame's display rotation, and crop it to even width and height, as H.264 requires, in yuv420p."""
    width, height = frame.width - frame.width % 2, frame.height - frame.height % 2
    if not frame.rotation:
        return frame.reformat(width=width, height=height, format="yuv420p")
    pixels = np.asarray(frame.reformat(width, height, "rgb24").to_ndarray(), np.uint8)
    rotated = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return av.VideoFrame.from_ndarray(rotated, "rgb24").reformat(format="yuv420p")


def _jpeg(frame: av.VideoFrame, height: int, pixel_aspect: float) -> bytes:
    aspect = frame.width / frame.height * pixel_aspect
    quarter_turns = round(frame.rotation / 90)
    size = (height, round(height / aspect)) if quarter_turns % 2 else (round(height * aspect), height)
    resized = frame.reformat(max(size[0], 2), max(size[1], 2), "rgb24").to_ndarray()
    return encode_jpeg(np.rot90(resized, quarter_turns)[None], 78)[0]
