"""Log-mel bands, as `transformers`' WhisperFeatureExtractor computes them, from sound that comes in pieces.

On the host, with float64 inside: a band may have 10^-8 of another's power, and in float32 the rounding of the transform
alone moves it by 4e-5. It takes a thousandth of the sound's time, in the threads that decode.

Dimensions: F frames (100 a second), C mel bands.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from jaxtyping import Float
from transformers.audio_utils import mel_filter_bank

from calce_jax.speech.audio import RATE

HOP, WINDOW = 160, 400
FRAMES_PER_S = RATE // HOP
# Samples before the middle of a window; the sound is mirrored by that much at both ends.
EDGE = WINDOW // 2
# Frames that are computed at once, and the samples these take.
BLOCK = 3000
NEEDED = (BLOCK - 1) * HOP + WINDOW
# Bands this many powers of ten below the loudest of the file are as good as silent.
RANGE = 8.0


def log_mel(pieces: Iterable[Float[np.ndarray, "_"]], mels: int) -> Float[np.ndarray, "F C"]:
    """Return the bands of a whole file, float32; F = samples // 160, the rest of a frame is left out.

    They are scaled by the loudest band of the file, as `transformers` scales long sound; so the first window of a file
    waits for its end. An hour takes 115 MB (80 bands) or 184 MB (128).

    Args:
      pieces: samples, 16 kHz, of any lengths.
      mels: C, 80 or 128.
    """
    filters = _filters(mels)
    blocks = [_log_power(block, filters)[:frames] for block, frames in _blocks(pieces)]
    if not blocks:
        return np.zeros((0, mels), np.float32)
    bands = np.concatenate(blocks)
    return (np.maximum(bands, bands.max() - np.float32(RANGE)) + np.float32(4)) / np.float32(4)


def _blocks(pieces: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, int]]:
    """Yield stretches of NEEDED samples that overlap as windows do, and how many frames of each are the file's."""
    held: list[np.ndarray] = []
    size = total = done = 0
    for piece in pieces:
        held, size, total = [*held, piece], size + len(piece), total + len(piece)
        if done == 0 and size == total > EDGE:  # the first time there is enough to mirror
            start = np.concatenate(held)
            held, size = [start[EDGE:0:-1], start], size + EDGE
        while size >= NEEDED and size != total:
            samples = np.concatenate(held)
            yield samples[:NEEDED], BLOCK
            done += BLOCK
            held, size = [samples[BLOCK * HOP :]], size - BLOCK * HOP
    if not (frames := total // HOP - done):
        return
    samples = np.concatenate(held)
    if total <= EDGE:
        samples = np.pad(samples, EDGE, mode="reflect")
    else:
        samples = np.concatenate([samples, samples[-2 : -EDGE - 2 : -1]])
    for first in range(0, frames, BLOCK):
        rest = samples[first * HOP : first * HOP + NEEDED]
        yield np.pad(rest, (0, NEEDED - len(rest))), min(BLOCK, frames - first)


@cache
def _filters(mels: int) -> Float[np.ndarray, "X C"]:
    bank = mel_filter_bank(
        num_frequency_bins=1 + WINDOW // 2,
        num_mel_filters=mels,
        min_frequency=0.0,
        max_frequency=RATE / 2,
        sampling_rate=RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    return bank.astype(np.float32)


def _log_power(samples: Float[np.ndarray, "_"], filters: Float[np.ndarray, "X C"]) -> Float[np.ndarray, "F C"]:
    """Return log10 of the power in each band, float32."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    frames = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP]
    spectrum = np.fft.rfft(frames * hann)
    power = (np.square(spectrum.real) + np.square(spectrum.imag)).astype(np.float32)
    return np.log10(np.maximum(power @ filters, np.float32(1e-10)))
