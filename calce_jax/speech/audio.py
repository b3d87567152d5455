"""The sound of a file as Whisper hears it: 16 kHz, one channel, in pieces, in step with the picture.

FFmpeg mixes any number of channels down and changes any rate. Times are those of the file: a sound track that begins
after the picture, or has holes, is filled with silence, so that a sample's index over 16,000 is its second.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import Float

from calce_jax.errors import UserError
from calce_jax.video.decode import MAX_MISSING_SECONDS, REFETCH_REMEDY, VIDEO_FORMATS

SAMPLE_RATE = 16_000
# Containers of sound alone, beside those of video.
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,flac,mp3,aac,ac3,eac3,dts,aiff,au,caf,amr,ape,wv,tta,opus,matroska,webm"
# A jump in time of more than this is a hole to fill; less is the rounding of the container.
MIN_GAP_S = 0.1
# And one of more than this is no hole but a broken clock.
MAX_GAP_S = 600.0


class AudioError(UserError):
    """Sound that cannot be used; the message names the file, what is wrong with it and the remedy."""

    def __init__(self, path: str | os.PathLike[str], reason: str, remedy: str) -> None:
        super().__init__(f"{path}: {reason}", remedy)
        self.path, self.reason = Path(path), reason

    def __reduce__(self) -> tuple[type["AudioError"], tuple[Path, str, str]]:
        return type(self), (self.path, self.reason, self.remedy)


class NoAudioError(AudioError):
    """A file that is whole and has no sound: there is nothing to caption, and nothing to mend."""


def read_audio(path: str | os.PathLike[str]) -> Iterator[Float[np.ndarray, "_"]]:
    """Yield the samples of a file's best sound track: float32, 16 kHz, mixed down to one channel, pieces of any length.

    Args:
      path: a file of any container and codec that FFmpeg reads, with any number of channels and any rate.

    Raises:
      NoSound: it has no sound track, or an empty one.
      SoundError: it is missing, empty, not media, cannot be decoded, or ends more than a second before its header says.
    """
    resampler, num_damaged, end = _MonoResampler(path), 0, 0.0
    with _open_audio(path) as (container, stream):
        start, header_duration = _start_time(container, stream), _header_duration(container, stream)
        for frame in _decode_frames(container, stream):
            if frame is None:
                num_damaged += 1
                continue
            frame_duration = frame.samples / frame.sample_rate
            frame_start = end if frame.time is None else frame.time - start
            if frame_start + frame_duration <= 0:
                continue
            if frame_start - end > MAX_GAP_S:
                start, frame_start = start + frame_start - end, end
            if frame_start - end > MIN_GAP_S:
                yield from resampler.pad_until(frame_start)
                end = frame_start
            yield from resampler.resample(frame)
            end += frame_duration
        yield from resampler.flush()
    seconds = resampler.num_samples / SAMPLE_RATE
    if not seconds and num_damaged:
        raise AudioError(path, "nothing of its sound can be decoded", REFETCH_REMEDY)
    if not seconds:
        raise NoAudioError(path, "its sound track is empty", "nothing is to be done")
    if header_duration is not None and header_duration - seconds > MAX_MISSING_SECONDS:
        reason = (
            f"its header promises {header_duration:.1f} s of sound and only {seconds:.1f} s are there: it was cut off"
        )
        raise AudioError(path, reason, REFETCH_REMEDY)


class _MonoResampler:
    """Mixes frames down to one channel at 16 kHz, and counts the samples it gives."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.num_samples = 0
        self._path = path
        self._resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        self._input_format: tuple[str, str, int] | None = None

    def resample(self, frame: av.AudioFrame) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield what comes out when the frame goes in."""
        input_format = frame.format.name, frame.layout.name, frame.sample_rate
        if input_format != self._input_format:
            # Some broadcasts change from stereo to 5.1 and back; a resampler knows one kind of input.
            yield from self.flush()
            self._input_format = input_format
        frame.pts = None  # holes are filled outside
        yield from self._resample_frame(frame)

    def pad_until(self, second: float) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield zeros up to that time."""
        yield from self.flush()
        if (samples := round(second * SAMPLE_RATE) - self.num_samples) > 0:
            self.num_samples += samples
            yield np.zeros(samples, np.float32)

    def flush(self) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield what the resampler still holds, and begin anew."""
        yield from self._resample_frame(None)
        self._resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)

    def _resample_frame(self, frame: av.AudioFrame | None) -> Iterator[Float[np.ndarray, "_"]]:
        try:
            resampled_frames = self._resampler.resample(frame)
        except (FFmpegError, ValueError) as error:
            reason = f"its channels cannot be mixed into one ({error})"
            raise AudioError(self._path, reason, "make it again as AAC with ffmpeg") from error
        for resampled in resampled_frames:
            if resampled is not None and resampled.samples:
                self.num_samples += resampled.samples
                # Files of floats may hold anything.
                yield np.nan_to_num(resampled.to_ndarray()[0], nan=0.0, posinf=0.0, neginf=0.0)


@contextmanager
def _open_audio(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, AudioStream]]:
    if not Path(path).is_file():
        raise AudioError(path, "there is no such file", "put it there, or correct the name")
    try:
        # By its absolute path, which nothing takes for an address.
        options = {"protocol_whitelist": "file", "format_whitelist": AUDIO_FORMATS}
        container = av.open(os.path.abspath(path), options=options)
    except (FFmpegError, OSError) as error:
        reason = "it is empty" if not os.path.getsize(path) else f"it holds no sound or video ({error.strerror})"
        raise AudioError(path, reason, REFETCH_REMEDY) from error
    with container:
        best = container.streams.best("audio")
        if not isinstance(best, AudioStream):
            raise NoAudioError(path, "it has no sound track", "nothing is to be done")
        if best.codec_context is None:
            raise AudioError(path, "FFmpeg has no decoder for its sound", "make it again as AAC with ffmpeg")
        yield container, best


def _decode_frames(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame | None]:
    """Yield the frames, None in the place of packets that cannot be decoded, up to where the file breaks off."""
    try:
        for packet in container.demux(stream):
            try:
                yield from stream.decode(packet)
            except FFmpegError:
                yield None
    except FFmpegError:
        yield None


def _start_time(container: InputContainer, stream: AudioStream) -> float:
    """Return the time that counts as 0: that of the first picture, or without one, of the first sound."""
    for timed in (*container.streams.video, stream):
        if timed.start_time is not None and timed.time_base is not None:
            return float(timed.start_time * timed.time_base)
    return 0.0


def _header_duration(container: InputContainer, stream: AudioStream) -> float | None:
    """Return the seconds of sound that the header names."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # Matroska
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None
