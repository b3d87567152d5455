"""A caption, apart from the text of a batch: captions are read and searched without importing jax."""

from dataclasses import dataclass

import numpy as np

Number = int | float | np.number


@dataclass(frozen=True)
class Word:
    """A word of a caption, as openai-whisper writes it.

    Attributes:
      word: with the space before it, and the punctuation beside it.
      start, end: in seconds.
      probability: mean of its tokens' probabilities.
    """

    word: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True)
class Caption:
    """Text spoken from second `start` to second `end`; its words, where their times are known."""

    start: Number
    end: Number
    text: str
    words: tuple[Word, ...] = ()
