"""Decoding the audio of a file for Whisper: 16 kHz, mono, in chunks, aligned with the video.

FFmpeg resamples any rate and mixes down any number of channels. Samples are rounded to 16 bits, as openai-whisper and
faster-whisper do: speech at 8 kHz has next to nothing above 4 kHz, so there the rounding is most of what the upper mel
bands hold, and without it one token of hundreds differs from theirs. An audio stream that starts late, or has gaps, is
padded with zeros, so that sample i is at i / 16,000 seconds on a player's clock (`calce_jax.video.clock`).
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

from calce_jax.video.clock import PlayerClock
from calce_jax.video.container import (
    AUDIO_FORMATS,
    REFETCH_REMEDY,
    MediaError,
    check_not_truncated,
    decoder_errors,
    header_duration,
    open_container,
)

SAMPLE_RATE = 16_000
FULL_SCALE = np.float32(2**15)  # of 16 bits
# Video containers, and containers of audio alone.
# A jump in timestamps of more than this is a gap to pad; less is the rounding of the container.
MIN_GAP_S = 0.1
# Two channels of which one is the other with the opposite sign cancel where they are mixed. They are taken for such if
# their mean has less than this fraction of their energy; of independent channels it has half.
MIN_MIXED_ENERGY = 0.05


class AudioError(MediaError):
    """Audio that cannot be used; the message names the file, what is wrong with it and the remedy."""


class NoAudioError(AudioError):
    """An intact file without audio: there is nothing to transcribe, and nothing to repair."""


def read_audio(path: str | os.PathLike[str]) -> Iterator[Float[np.ndarray, "_"]]:
    """Yield the samples of a file's best audio stream as float32 mono at 16 kHz, in chunks of any length.

    They are multiples of 2**-15, from -1 to 1 - 2**-15.

    Args:
      path: a file in one of `AUDIO_FORMATS`, of any codec that FFmpeg reads, with any sample rate and channels.

    Raises:
      NoAudioError: the file has no audio stream, or an empty one.
      AudioError: the file is missing, empty, in another format, cannot be decoded, or ends more than a second before
        its header says.
    """
    with decoder_errors(path, AudioError):
        yield from _read_audio(path)


def _read_audio(path: str | os.PathLike[str]) -> Iterator[Float[np.ndarray, "_"]]:
    resampler, num_damaged, end, begin = _MonoResampler(path), 0, 0.0, None
    with _open_audio(path) as (container, stream):
        clock, expected = PlayerClock(container, stream), header_duration(container, stream)
        for frame in _decode_frames(container, stream):
            if frame is None:
                num_damaged += 1
                continue
            frame_duration = frame.samples / frame.sample_rate
            frame_start = clock.seconds(frame.pts, frame_duration)
            begin = frame_start if begin is None else begin
            if frame_start + frame_duration <= 0:
                continue
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
    check_not_truncated(path, expected, seconds - (begin or 0.0), AudioError)


class _MonoResampler:
    """Resamples frames to mono at 16 kHz, and counts the samples it has returned."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.num_samples = 0
        self._path = path
        self._layout = "mono"
        self._resampler = av.AudioResampler("fltp", self._layout, SAMPLE_RATE)
        self._input_format: tuple[str, str, int] | None = None
        self._has_16_bits = False  # and needs no resampling

    def resample(self, frame: av.AudioFrame) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield the samples of a frame; the resampler may hold some back until the next."""
        input_format = frame.format.name, frame.layout.name, frame.sample_rate
        if input_format != self._input_format:
            # Some broadcasts change from stereo to 5.1 and back; a resampler takes one input format.
            yield from self.flush()
            self._input_format = input_format
            self._has_16_bits = frame.format.name in ("s16", "s16p") and frame.sample_rate == SAMPLE_RATE
            self._layout = "stereo" if frame.layout.nb_channels == 2 else "mono"
            self._resampler = av.AudioResampler("fltp", self._layout, SAMPLE_RATE)
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
        self._resampler = av.AudioResampler("fltp", self._layout, SAMPLE_RATE)

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
                mixed = _mix(np.nan_to_num(resampled.to_ndarray(), nan=0.0, posinf=0.0, neginf=0.0))
                yield _round_to_16_bits(mixed, halves_up=self._has_16_bits)


def _mix(channels: Float[np.ndarray, "channels _"]) -> Float[np.ndarray, "_"]:
    """Return the mean of one or two channels; where two would cancel, with the sign of the second turned."""
    if len(channels) == 1:
        return channels[0]
    first, second = channels
    mixed = (first + second) * np.float32(0.5)
    energy = float(np.square(channels, dtype=np.float64).sum()) / 2
    if float(np.square(mixed, dtype=np.float64).sum()) < MIN_MIXED_ENERGY * energy:
        return (first - second) * np.float32(0.5)
    return mixed


def _round_to_16_bits(samples: Float[np.ndarray, "_"], *, halves_up: bool) -> Float[np.ndarray, "_"]:
    """Round as FFmpeg does: halves to the even number, but up in the means of two channels that have 16 bits."""
    scaled = samples * FULL_SCALE
    rounded = np.floor(scaled + np.float32(0.5)) if halves_up else np.round(scaled)
    return np.clip(rounded, -FULL_SCALE, FULL_SCALE - 1) / FULL_SCALE


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
