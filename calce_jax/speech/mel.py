"""Log-mel spectrograms of chunked audio, equal to those of transformers' `WhisperFeatureExtractor`.

Computed on the host in float64: a band may have 1e-8 of another's power, and in float32 the rounding of the FFT alone
moves it by 4e-5. It takes a thousandth of the audio's duration, in the threads that decode.

Dimensions: F frames (100 a second), C mel bands.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from jaxtyping import Float
from transformers.audio_utils import mel_filter_bank

from calce_jax.speech.audio import SAMPLE_RATE

HOP_LENGTH, N_FFT = 160, 400
FRAMES_PER_SECOND = SAMPLE_RATE // HOP_LENGTH
# Half a window: the audio is padded by reflection with this many samples at both ends.
EDGE_SAMPLES = N_FFT // 2
# Frames computed at once, and the samples they need.
BLOCK_FRAMES = 3000
BLOCK_SAMPLES = (BLOCK_FRAMES - 1) * HOP_LENGTH + N_FFT
# Values are clipped to this many powers of ten below the loudest band of the file.
DYNAMIC_RANGE = 8.0


def log_mel_spectrogram(chunks: Iterable[Float[np.ndarray, "_"]], mel_bins: int) -> Float[np.ndarray, "F C"]:
    """Return the log-mel spectrogram of a file, float32; F = samples // 160, an incomplete frame is dropped.

    Scaled by the loudest band of the whole file, as transformers does for long audio; so the first window is known only
    at the end of the file. An hour takes 115 MB (80 bands) or 184 MB (128).

    Args:
      chunks: samples at 16 kHz, in chunks of any length.
      mel_bins: C, 80 or 128.
    """
    filters = _mel_filters(mel_bins)
    blocks = [_log_power(block, filters)[:frames] for block, frames in _blocks(chunks)]
    if not blocks:
        return np.zeros((0, mel_bins), np.float32)
    bands = np.concatenate(blocks)
    return (np.maximum(bands, bands.max() - np.float32(DYNAMIC_RANGE)) + np.float32(4)) / np.float32(4)


def _blocks(chunks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield blocks of `BLOCK_SAMPLES` samples, overlapping as windows do, and how many frames each has in the file."""
    buffered: list[np.ndarray] = []
    num_buffered = num_samples = num_done = 0
    for chunk in chunks:
        buffered, num_buffered, num_samples = [*buffered, chunk], num_buffered + len(chunk), num_samples + len(chunk)
        if num_done == 0 and num_buffered == num_samples > EDGE_SAMPLES:  # enough to reflect at the start
            start = np.concatenate(buffered)
            buffered, num_buffered = [start[EDGE_SAMPLES:0:-1], start], num_buffered + EDGE_SAMPLES
        while num_buffered >= BLOCK_SAMPLES and num_buffered != num_samples:
            samples = np.concatenate(buffered)
            yield samples[:BLOCK_SAMPLES], BLOCK_FRAMES
            num_done += BLOCK_FRAMES
            buffered, num_buffered = [samples[BLOCK_FRAMES * HOP_LENGTH :]], num_buffered - BLOCK_FRAMES * HOP_LENGTH
    if not (frames := num_samples // HOP_LENGTH - num_done):
        return
    samples = np.concatenate(buffered)
    if num_samples <= EDGE_SAMPLES:
        samples = np.pad(samples, EDGE_SAMPLES, mode="reflect")
    else:
        samples = np.concatenate([samples, samples[-2 : -EDGE_SAMPLES - 2 : -1]])
    for first in range(0, frames, BLOCK_FRAMES):
        block = samples[first * HOP_LENGTH : first * HOP_LENGTH + BLOCK_SAMPLES]
        yield np.pad(block, (0, BLOCK_SAMPLES - len(block))), min(BLOCK_FRAMES, frames - first)


@cache
def _mel_filters(mel_bins: int) -> Float[np.ndarray, "X C"]:
    filter_bank = mel_filter_bank(
        num_frequency_bins=1 + N_FFT // 2,
        num_mel_filters=mel_bins,
        min_frequency=0.0,
        max_frequency=SAMPLE_RATE / 2,
        sampling_rate=SAMPLE_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return filter_bank.astype(np.float32)


def _log_power(samples: Float[np.ndarray, "_"], filters: Float[np.ndarray, "X C"]) -> Float[np.ndarray, "F C"]:
    """Return log10 of the power in each mel band, float32, at least -10."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)
    frames = np.lib.stride_tricks.sliding_window_view(samples, N_FFT)[::HOP_LENGTH]
    spectrum = np.fft.rfft(frames * hann)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
    return np.log10(np.maximum(power @ filters, np.float32(1e-10)))
