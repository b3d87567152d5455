"""Pictures and stretches taken out of a video, for people to look at."""

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from calce_jax.storage.atomic_files import replacing
from calce_jax.video.decode import FORMATS, ROUNDING, VideoError, encode_jpeg

# Decoding on is quicker than looking for the place, up to about one group of pictures.
NEAR_S = 10.0
SOUND_RATE = 48_000


def pictures_at(video: str | Path, seconds: Sequence[float], height: int = 112) -> list[bytes]:
    """Return JPEG pictures of about these times, in the video's aspect; decoded from the nearest key frames.

    Args:
      video: a file that `calce_jax.video.decode` reads.
      seconds: from the first frame, rising.
      height: of the pictures, pixels.

    Raises:
      VideoError: nothing of it can be decoded.
    """
    found: list[bytes] = []
    with _opened(video) as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise VideoError(video, "it has no video stream", "choose another file")
        stream.thread_type = "AUTO"
        origin = _origin(stream)
        coming, held = _frames(container, stream), None
        ahead = next(coming, None)
        for second in seconds:
            if ahead is not None and second - _time(ahead, origin) > NEAR_S:
                try:
                    container.seek(int((origin + second) * av.time_base))
                    coming = _frames(container, stream)
                    held, ahead = None, next(coming, None)
                except FFmpegError:  # a file without an index
                    pass
            while ahead is not None and (held is None or _time(ahead, origin) <= second + ROUNDING):
                held, ahead = ahead, next(coming, None)
            if held is None:
                raise VideoError(video, "no frame of it can be decoded", "make it again with ffmpeg")
            found.append(_jpeg(held, height, float(stream.sample_aspect_ratio or 1)))
    return found


def cut(video: str | Path, start: float, end: float, out: str | Path) -> None:
    """Write the stretch from second `start` to second `end` as an mp4 of H.264 and AAC, to the frame.

    Raises:
      VideoError: the video cannot be read there.
      OSError: the file cannot be written.
    """
    with replacing(out) as part, _opened(video) as source:
        with av.open(str(part), "w", format="mp4", options={"movflags": "+faststart"}) as target:
            pictures = _copy(source, target, start, end)
        if not pictures:
            raise VideoError(video, f"there is no picture from {start:.1f} s to {end:.1f} s", "search it again")


def _copy(source: InputContainer, target: OutputContainer, start: float, end: float) -> int:
    """Encode what lies between two times, and return the number of pictures."""
    seen, heard = source.streams.best("video"), source.streams.best("audio")
    assert isinstance(seen, VideoStream)
    seen.thread_type = "AUTO"
    origin = _origin(seen)
    source.seek(int((origin + max(start, 0.0)) * av.time_base))
    rate = seen.average_rate or Fraction(25)
    picture_out = target.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
    picture_out.pix_fmt = "yuv420p"
    picture_out.time_base = Fraction(1, 90_000)
    sound_out = target.add_stream("aac", rate=SOUND_RATE) if isinstance(heard, AudioStream) else None
    resampler = av.AudioResampler(format="fltp", layout="stereo", rate=SOUND_RATE)
    pictures, samples = 0, 0
    early: list[av.Packet] = []  # nothing is written before the size of the pictures is known
    open_streams = {stream.index: stream for stream in (seen, heard) if stream is not None}
    packets: Iterator[av.Packet] = source.demux(list(open_streams.values()))
    for packet in packets:
        if packet.stream.index not in open_streams:
            continue
        for frame in _decoded(packet):
            time = _time(frame, origin)
            if time >= end - ROUNDING:
                open_streams.pop(packet.stream.index, None)
                break
            if time < start - ROUNDING:
                continue
            if isinstance(frame, av.VideoFrame):
                upright = _upright(frame)
                if not pictures:
                    picture_out.width, picture_out.height = upright.width, upright.height
                upright.pts, upright.time_base = round((time - start) * 90_000), Fraction(1, 90_000)
                target.mux([*picture_out.encode(upright), *early])
                early.clear()
                pictures += 1
            elif sound_out is not None:
                for piece in resampler.resample(frame):
                    piece.pts, piece.time_base = samples, Fraction(1, SOUND_RATE)
                    samples += piece.samples
                    encoded = sound_out.encode(piece)
                    target.mux(encoded) if pictures else early.extend(encoded)
        if not open_streams:
            break
    if pictures:
        target.mux(picture_out.encode(None))
    if samples and sound_out is not None:
        target.mux(sound_out.encode(None))
    return pictures


def _opened(video: str | Path) -> InputContainer:
    try:
        return av.open(os.path.abspath(video), options={"protocol_whitelist": "file", "format_whitelist": FORMATS})
    except (FFmpegError, OSError) as error:
        raise VideoError(video, f"it is not a video ({error.strerror})", "choose another file") from error


def _origin(stream: VideoStream) -> float:
    return float((stream.start_time or 0) * (stream.time_base or 0))


def _time(frame: av.VideoFrame | av.AudioFrame, origin: float) -> float:
    return 0.0 if frame.time is None else frame.time - origin


def _frames(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    try:
        yield from container.decode(stream)
    except FFmpegError:  # damaged from here on
        return


def _decoded(packet: av.Packet) -> Sequence[av.VideoFrame | av.AudioFrame]:
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame | av.AudioFrame)]
    except FFmpegError:
        return ()


def _upright(frame: av.VideoFrame) -> av.VideoFrame:
    """Return the picture as players show it, with even sides, as H.264 wants them."""
    width, height = frame.width - frame.width % 2, frame.height - frame.height % 2
    if not frame.rotation:
        return frame.reformat(width=width, height=height, format="yuv420p")
    pixels = np.asarray(frame.reformat(width, height, "rgb24").to_ndarray(), np.uint8)
    turned = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    return av.VideoFrame.from_ndarray(turned, "rgb24").reformat(format="yuv420p")


def _jpeg(frame: av.VideoFrame, height: int, pixel: float) -> bytes:
    aspect = frame.width / frame.height * pixel
    quarter = round(frame.rotation / 90)
    sides = (height, round(height / aspect)) if quarter % 2 else (round(height * aspect), height)
    small = frame.reformat(max(sides[0], 2), max(sides[1], 2), "rgb24").to_ndarray()
    return encode_jpeg(np.rot90(small, quarter)[None], 78)[0]
