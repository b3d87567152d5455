"""Decoding the audio of a file for Whisper: 16 kHz, mono, in chunks, aligned with the video.

FFmpeg resamples any rate and mixes down any number of channels. An audio stream that starts after the video, or has
gaps, is padded with zeros, so that sample i is at i / 16,000 seconds of the file.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import Float

from calce_jax.video.container import (
    REFETCH_REMEDY,
    VIDEO_FORMATS,
    MediaError,
    check_not_truncated,
    header_duration,
    open_container,
)

SAMPLE_RATE = 16_000
# Video containers, and containers of audio alone.
AUDIO_FORMATS = f"{VIDEO_FORMATS},wav,w64,flac,mp3,aac,ac3,eac3,dts,aiff,au,caf,amr,ape,wv,tta,opus,matroska,webm"
# A jump in timestamps of more than this is a gap to pad; less is the rounding of the container.
MIN_GAP_S = 0.1
# A longer jump is not a gap but a broken clock: what follows is moved to directly after what came before.
MAX_GAP_S = 600.0


class AudioError(MediaError):
    """Audio that cannot be used; the message names the file, what is wrong with it and the remedy."""


class NoAudioError(AudioError):
    """An intact file without audio: there is nothing to transcribe, and nothing to repair."""


def read_audio(path: str | os.PathLike[str]) -> Iterator[Float[np.ndarray, "_"]]:
    """Yield the samples of a file's best audio stream as float32 mono at 16 kHz, in chunks of any length.

    Args:
      path: a file in one of `AUDIO_FORMATS`, of any codec that FFmpeg reads, with any sample rate and channels.

    Raises:
      NoAudioError: the file has no audio stream, or an empty one.
      AudioError: the file is missing, empty, in another format, cannot be decoded, or ends more than a second before
        its header says.
    """
    resampler, num_damaged, end = _MonoResampler(path), 0, 0.0
    with _open_audio(path) as (container, stream):
        start, expected = _start_time(container, stream), header_duration(container, stream)
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
        raise AudioError(path, "none of its audio can be decoded", REFETCH_REMEDY)
    if not seconds:
        raise NoAudioError(path, "its audio stream is empty", "nothing needs to be done")
    check_not_truncated(path, expected, seconds, AudioError)


class _MonoResampler:
    """Resamples frames to mono at 16 kHz, and counts the samples it has returned."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.num_samples = 0
        self._path = path
        self._resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)
        self._input_format: tuple[str, str, int] | None = None

    def resample(self, frame: av.AudioFrame) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield the samples of a frame; the resampler may hold some back until the next."""
        input_format = frame.format.name, frame.layout.name, frame.sample_rate
        if input_format != self._input_format:
            # Some broadcasts change from stereo to 5.1 and back; a resampler takes one input format.
            yield from self.flush()
            self._input_format = input_format
        frame.pts = None  # gaps are padded by `pad_until`
        yield from self._resample_frame(frame)

    def pad_until(self, second: float) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield zeros up to a time of the file."""
        yield from self.flush()
        if (samples := round(second * SAMPLE_RATE) - self.num_samples) > 0:
            self.num_samples += samples
            yield np.zeros(samples, np.float32)

    def flush(self) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield the samples that the resampler holds back, and replace it."""
        yield from self._resample_frame(None)
        self._resampler = av.AudioResampler("flt", "mono", SAMPLE_RATE)

    def _resample_frame(self, frame: av.AudioFrame | None) -> Iterator[Float[np.ndarray, "_"]]:
        try:
            resampled_frames = self._resampler.resample(frame)
        except (FFmpegError, ValueError) as error:
            reason = f"its channels cannot be mixed down to one ({error})"
            raise AudioError(self._path, reason, "re-encode it as AAC with ffmpeg") from error
        for resampled in resampled_frames:
            if resampled is not None and resampled.samples:
                self.num_samples += resampled.samples
                # Float formats may hold NaN and infinities.
                yield np.nan_to_num(resampled.to_ndarray()[0], nan=0.0, posinf=0.0, neginf=0.0)


@contextmanager
def _open_audio(path: str | os.PathLike[str]) -> Iterator[tuple[InputContainer, AudioStream]]:
    with open_container(path, AUDIO_FORMATS, AudioError, "it holds no audio or video") as container:
        best = container.streams.best("audio")
        if not isinstance(best, AudioStream):
            raise NoAudioError(path, "it has no audio stream", "nothing needs to be done")
        if best.codec_context is None:
            raise AudioError(path, "FFmpeg has no decoder for its audio stream", "re-encode it as AAC with ffmpeg")
        yield container, best


def _decode_frames(container: InputContainer, stream: AudioStream) -> Iterator[av.AudioFrame | None]:
    """Yield the frames up to the first read error, and None for every packet that cannot be decoded."""
    try:
        for packet in container.demux(stream):
            try:
                yield from stream.decode(packet)
            except FFmpegError:
                yield None
    except FFmpegError:
        yield None


def _start_time(container: InputContainer, stream: AudioStream) -> float:
    """Return the timestamp of second 0: the start of the video stream, or of the audio stream if there is none."""
    for timed in (*container.streams.video, stream):
        if timed.start_time is not None and timed.time_base is not None:
            return float(timed.start_time * timed.time_base)
    return 0.0
