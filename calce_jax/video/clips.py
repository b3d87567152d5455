"""Thumbnails and clips cut from a video, for reports and search pages. Seconds are those of a player's clock."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import chain
from math import inf
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream

from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import atomic_write
from calce_jax.video.clock import MIN_LATE_START_S, PlayerClock, clock_origin, has_broken_clock
from calce_jax.video.container import decoder_errors
from calce_jax.video.decode import TIME_TOLERANCE, VideoError, encode_jpeg, open_video

# Up to about one group of pictures ahead, decoding on is faster than seeking.
MAX_DECODE_AHEAD_S = 10.0
# A seek that lands behind its time is tried again from so many seconds earlier; at last the file is read from 0.
SEEK_MARGINS_S = (0.0, 2.0, 15.0, inf)
# Sound and pictures of one time may be so far apart in a file.
MAX_INTERLEAVING_S = 30.0
AUDIO_RATE = 48_000
VIDEO_TIME_BASE = Fraction(1, 90_000)
# Without frames that refer to later ones: at a varying rate these would shorten the track by their delay.
ENCODER_OPTIONS = {"crf": "20", "preset": "veryfast", "bf": "0"}
# Of a copied clip, by its suffix.
CLIP_FORMATS = {".mkv": "matroska", ".webm": "webm", ".mov": "mov"}
# The encoder plans with this rate where the file has none, or one of a slide show.
DEFAULT_RATE = Fraction(25)


def thumbnails_at(video: str | Path, seconds: Sequence[float], height: int = 112) -> list[bytes]:
    """Return a JPEG of the frame shown at about each of the given times, in the video's aspect ratio.

    Times far ahead are reached by seeking to the key frame before them.

    Args:
      video: a file that `calce_jax.video.decode` reads.
      seconds: ascending. Times before the first frame give the first.
      height: of the JPEGs, pixels.

    Raises:
      VideoError: the file is missing, is not a video, or no frame of it can be decoded.
    """
    with decoder_errors(video, VideoError):
        return _thumbnails_at(video, seconds, height)


def _thumbnails_at(video: str | Path, seconds: Sequence[float], height: int) -> list[bytes]:
    thumbnails: list[bytes] = []
    with ExitStack() as stack:
        reader = stack.enter_context(_open_at(video, 0.0))
        pixel_aspect, is_seekable = _pixel_aspect(reader.video), _can_seek(reader.container, reader.video)
        current, upcoming = None, next(reader.frames, None)
        for second in seconds:
            if is_seekable and upcoming is not None and second - upcoming.second > MAX_DECODE_AHEAD_S:
                stack.close()
                reader = stack.enter_context(_open_at(video, second))
                current, upcoming = None, next(reader.frames, None)
            while upcoming is not None and (current is None or upcoming.second <= second + TIME_TOLERANCE):
                current, upcoming = upcoming.frame, next(reader.frames, None)
            if current is None:
                raise VideoError(video, "no frame of it can be decoded", "re-encode it with ffmpeg")
            thumbnails.append(_jpeg(current, height, pixel_aspect))
    return thumbnails


def cut_clip(video: str | Path, start: float, end: float, out: str | Path) -> None:
    """Write the part of a video from `start` to `end`, in seconds, as an MP4 of H.264 and AAC; exact to the frame.

    It begins with the picture that is shown at `start`, even if that is an earlier one, and keeps the shape of the
    pixels.

    Raises:
      VideoError: the video cannot be read.
      OSError: `out` cannot be written.
    """
    try:
        with atomic_write(out) as tmp_path, _open_at(video, start, with_sound=True) as source:
            with av.open(str(tmp_path), "w", format="mp4", options={"movflags": "+faststart"}) as target:
                is_written = _ClipWriter(source, target, start, end).write()
            if not is_written:
                raise VideoError(video, f"no frame from {start:.1f} s on can be decoded", "re-encode it with ffmpeg")
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = f"it cannot be cut from {start:.1f} s to {end:.1f} s ({type(error).__name__}: {error!s:.100})"
        raise VideoError(video, reason, "re-encode it with ffmpeg") from error


def copy_clip(video: str | Path, start: float, end: float, out: str | Path) -> None:
    """Write the part of a video from the key frame at or before `start` to `end`, in seconds, without encoding anew.

    Pictures and sound are copied, to the container that the suffix of `out` names.

    Raises:
      VideoError: the video cannot be read, has timestamps that restart, or does not fit into that container.
      OSError: `out` cannot be written.
    """
    remedy = "cut it without copying, which encodes it anew"
    try:
        with atomic_write(out) as tmp_path:
            for margin in SEEK_MARGINS_S:
                with open_video(video, threads=1) as (container, stream):
                    if has_broken_clock(container):
                        raise VideoError(video, "it cannot be copied in part, since its timestamps restart", remedy)
                    sought = _seek(container, stream, start - margin)
                    with av.open(
                        str(tmp_path), "w", format=CLIP_FORMATS.get(Path(out).suffix.lower(), "mp4")
                    ) as target:
                        is_copied = _copy_packets(container, stream, target, (start, end), is_late_allowed=not sought)
                    if is_copied:
                        return
            raise VideoError(video, f"it has no picture from {start:.1f} s on", "choose earlier times")
    except (UserError, OSError):
        raise
    except Exception as error:
        reason = f"it cannot be copied from {start:.1f} s to {end:.1f} s ({type(error).__name__}: {error!s:.100})"
        raise VideoError(video, reason, remedy) from error


def _copy_packets(
    container: InputContainer,
    video: VideoStream,
    target: OutputContainer,
    window: tuple[float, float],
    *,
    is_late_allowed: bool,
) -> bool:
    """Copy the packets from the next key frame to the window's end.

    Returns:
      False, with nothing copied, if there is no key frame, or only one behind the window's start.
    """
    origin = clock_origin(container)
    audio = container.streams.best("audio")
    sources = [video, *([audio] if isinstance(audio, AudioStream) else [])]
    targets = {source.index: target.add_stream_from_template(source) for source in sources}
    first: float | None = None
    ended: set[int] = set()
    for packet in _with_decoding_times(container.demux(sources)):
        if packet.pts is None or packet.dts is None:
            continue
        second = float(packet.pts * packet.time_base) - origin
        is_video = packet.stream.index == video.index
        if first is None:
            if not is_video or not packet.is_keyframe:
                continue
            if second > window[0] + TIME_TOLERANCE and not is_late_allowed:
                return False
            first = second
        # By the time of decoding: a picture before the end may refer to one behind it.
        if float(packet.dts * packet.time_base) - origin >= window[1]:
            ended.add(packet.stream.index)
            if len(ended) == len(sources):
                break
        elif is_video or second >= first:
            shift = round((first + origin) / packet.time_base)
            packet.dts, packet.pts = packet.dts - shift, packet.pts - shift
            packet.stream = targets[packet.stream.index]
            target.mux(packet)
    return first is not None


def _with_decoding_times(packets: Iterable[av.Packet]) -> Iterator[av.Packet]:
    """Yield the packets of a demuxer, all with a time of decoding, which Matroska leaves out for the first ones."""
    waiting: dict[int, list[av.Packet]] = {}
    for packet in packets:
        if not packet.size:
            continue  # the end of a stream
        before = waiting.setdefault(packet.stream.index, [])
        if packet.dts is None:
            before.append(packet)
            continue
        for distance, earlier in zip(range(len(before), 0, -1), before, strict=True):
            earlier.dts = packet.dts - distance * max(packet.duration or 1, 1)
            yield earlier
        before.clear()
        yield packet
    for packet in chain(*waiting.values()):  # of a file so short that none has one
        packet.dts = packet.pts
        yield packet


class _Timed(NamedTuple):
    """A picture or a piece of sound, and the second at which it begins."""

    frame: av.VideoFrame | av.AudioFrame
    second: float

    @property
    def is_picture(self) -> bool:
        return isinstance(self.frame, av.VideoFrame)


class _ClipWriter:
    """Encodes the pictures and the sound between two times of a source."""

    def __init__(self, source: "_Reader", target: OutputContainer, start: float, end: float) -> None:
        self._source, self._target, self._start, self._end = source, target, start, end
        rate = source.video.average_rate or DEFAULT_RATE
        self._rate = rate if rate >= 1 else DEFAULT_RATE
        self._video = target.add_stream("libx264", rate=self._rate, options=ENCODER_OPTIONS)
        self._video.pix_fmt = "yuv420p"
        # Finer than a frame: pictures of a varying rate keep their times.
        self._video.time_base = self._video.codec_context.time_base = VIDEO_TIME_BASE
        self._audio = target.add_stream("aac", rate=AUDIO_RATE) if source.audio is not None else None
        self._resampler, self._layout, self._num_samples = self._new_resampler(), "", 0
        self._size: tuple[int, int] | None = None
        self._last_pts = -1
        # Held back until the first picture tells the size.
        self._pending_audio: list[av.Packet] = []

    def write(self) -> bool:
        """Write the clip; return False if the source has no picture for it, neither up to its start nor later."""
        shown: _Timed | None = None  # the last picture up to `start`
        last: _Timed | None = None
        is_sound_over = self._audio is None
        for timed in self._source.frames:
            if not timed.is_picture:
                is_sound_over = timed.second >= self._end - TIME_TOLERANCE
                if timed.second >= self._start - TIME_TOLERANCE and not is_sound_over:
                    self._write_sound(timed)
            elif timed.second <= self._start + TIME_TOLERANCE:
                shown = timed
            else:
                if last is None:
                    last = self._write_picture(shown or timed, 0.0)
                if timed.second < self._end - TIME_TOLERANCE:
                    last = self._write_picture(timed, timed.second - self._start)
                elif is_sound_over or timed.second >= self._end + MAX_INTERLEAVING_S:
                    break
        if last is None and shown is not None:
            last = self._write_picture(shown, 0.0)
        if last is None:
            return False
        last_second = self._end - self._start - float(1 / self._rate)
        if last_second > float(self._last_pts * VIDEO_TIME_BASE) + TIME_TOLERANCE:
            # The picture stays until the end, as in a slide show.
            self._write_picture(last, last_second)
        self._target.mux(self._video.encode(None))
        if self._audio is not None and self._layout:
            self._encode_sound(self._resampler.resample(None))
            self._target.mux(self._audio.encode(None))
        return True

    def _write_picture(self, timed: _Timed, second: float) -> _Timed:
        frame = timed.frame
        assert isinstance(frame, av.VideoFrame)
        upright = _apply_rotation(frame, self._size)
        if self._size is None:
            self._size = self._video.width, self._video.height = upright.width, upright.height
            aspect = self._source.video.sample_aspect_ratio
            if aspect:
                is_turned = round(frame.rotation / 90) % 2
                self._video.codec_context.sample_aspect_ratio = 1 / aspect if is_turned else aspect
        self._last_pts = max(round(second * VIDEO_TIME_BASE.denominator), self._last_pts + 1)
        upright.pts, upright.time_base = self._last_pts, VIDEO_TIME_BASE
        self._target.mux([*self._video.encode(upright), *self._pending_audio])
        self._pending_audio.clear()
        return timed

    def _write_sound(self, timed: _Timed) -> None:
        frame = timed.frame
        assert isinstance(frame, av.AudioFrame)
        # Some broadcasts change from stereo to 5.1 and back; a resampler takes one input format.
        if (layout := f"{frame.format.name} {frame.layout.name} {frame.sample_rate}") != self._layout:
            if self._layout:
                self._encode_sound(self._resampler.resample(None))
            self._resampler, self._layout = self._new_resampler(), layout
        position = round((timed.second - self._start) * AUDIO_RATE)
        if position - self._num_samples > MIN_LATE_START_S * AUDIO_RATE:
            self._num_samples = position
        frame.pts = None
        self._encode_sound(self._resampler.resample(frame))

    def _encode_sound(self, frames: Sequence[av.AudioFrame]) -> None:
        assert self._audio is not None
        for frame in frames:
            frame.pts, frame.time_base = self._num_samples, Fraction(1, AUDIO_RATE)
            self._num_samples += frame.samples
            encoded = self._audio.encode(frame)
            self._target.mux(encoded) if self._size else self._pending_audio.extend(encoded)

    @staticmethod
    def _new_resampler() -> av.AudioResampler:
        return av.AudioResampler(format="fltp", layout="stereo", rate=AUDIO_RATE)


class _Reader(NamedTuple):
    """An open video, and its frames from some time on, in the order of the file."""

    container: InputContainer
    video: VideoStream
    audio: AudioStream | None
    frames: Iterator[_Timed]


@contextmanager
def _open_at(path: str | Path, second: float, *, with_sound: bool = False) -> Iterator[_Reader]:
    """Open a video, and read from the picture on that is shown at `second`, or from an earlier one."""
    for margin in SEEK_MARGINS_S:
        with open_video(path, threads=0) as (container, stream):
            best = container.streams.best("audio") if with_sound else None
            audio = best if isinstance(best, AudioStream) and best.codec_context is not None else None
            sought = _seek(container, stream, second - margin)
            frames = _decode_from_here(container, stream, audio, sought=sought)
            head: deque[_Timed] = deque()
            for timed in frames:
                head.append(timed)
                if timed.is_picture:
                    break
            is_early = any(timed.is_picture and timed.second <= second + TIME_TOLERANCE for timed in head)
            if is_early or not sought:
                yield _Reader(container, stream, audio, chain(head, frames))
                return


def _seek(container: InputContainer, stream: VideoStream, second: float) -> bool:
    """Go to the key frame before a time, and return whether that was possible; if not, the file is at its start."""
    if second <= 0 or not _can_seek(container, stream):
        return False
    try:
        container.seek(int((clock_origin(container) + second) * av.time_base))
    except FFmpegError:  # a file without an index
        return False
    return True


def _can_seek(container: InputContainer, stream: VideoStream) -> bool:
    # Where timestamps may restart, or are missing, one of them does not tell a place.
    return not has_broken_clock(container) and stream.start_time is not None


def _decode_from_here(
    container: InputContainer, video: VideoStream, audio: AudioStream | None, *, sought: bool
) -> Iterator[_Timed]:
    """Yield the frames of one or two streams, up to the first read error, without those that are damaged."""
    clocks = {
        stream.index: PlayerClock(container, stream, sought=sought) for stream in (video, audio) if stream is not None
    }
    period = float(1 / (video.average_rate or DEFAULT_RATE))
    packets: Iterator[av.Packet] = container.demux([stream for stream in (video, audio) if stream is not None])
    while True:
        try:
            packet = next(packets, None)
        except FFmpegError:
            return
        if packet is None:
            return
        for frame in _decode_packet(packet):
            if isinstance(frame, av.AudioFrame):
                duration = frame.samples / frame.sample_rate
            else:
                duration = float((frame.duration or 0) * (packet.stream.time_base or 0)) or period
            yield _Timed(frame, clocks[packet.stream.index].seconds(frame.pts, duration))


def _decode_packet(packet: av.Packet) -> Sequence[av.VideoFrame | av.AudioFrame]:
    try:
        return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame | av.AudioFrame)]
    except FFmpegError:
        return ()


def _pixel_aspect(stream: VideoStream) -> float:
    return float(stream.sample_aspect_ratio or 1)


def _apply_rotation(frame: av.VideoFrame, size: tuple[int, int] | None) -> av.VideoFrame:
    """Apply a frame's display rotation, and scale it to a size (width, height), in yuv420p.

    By default its own size, cropped to even width and height, as H.264 requires.
    """
    if not frame.rotation:
        width, height = size or (frame.width - frame.width % 2, frame.height - frame.height % 2)
        return frame.reformat(width=max(width, 2), height=max(height, 2), format="yuv420p")
    pixels = np.asarray(frame.reformat(format="rgb24").to_ndarray(), np.uint8)
    rotated = np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))
    turned = av.VideoFrame.from_ndarray(rotated, "rgb24")
    width, height = size or (turned.width - turned.width % 2, turned.height - turned.height % 2)
    return turned.reformat(width=max(width, 2), height=max(height, 2), format="yuv420p")


def _jpeg(frame: av.VideoFrame | av.AudioFrame, height: int, pixel_aspect: float) -> bytes:
    assert isinstance(frame, av.VideoFrame)
    aspect = frame.width / frame.height * pixel_aspect
    quarter_turns = round(frame.rotation / 90)
    size = (height, round(height / aspect)) if quarter_turns % 2 else (round(height * aspect), height)
    resized = frame.reformat(max(size[0], 2), max(size[1], 2), "rgb24").to_ndarray()
    return encode_jpeg(np.rot90(resized, quarter_turns)[None], 78)[0]
