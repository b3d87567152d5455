"""The textual part of a batch row: what it is made of, its shapes, and what did not fit into them."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from jaxtyping import Int32

from calce_jax.batch import NUM_FIXED_SPANS

Number = int | float | np.number
Windows = Sequence[Sequence[Number]] | np.ndarray


class RowFlag(IntFlag):
    """What of a row did not fit the shapes of a batch, or had to be mended."""

    QUERY_TRUNCATED = (
        1  # the text was longer than `max_text_tokens` tokens, or the query than the BERT words of a batch
    )
    CAPTION_TRUNCATED = 2  # a caption was
    CAPTIONS_DROPPED = 4  # more captions than a batch has place for; the last ones went
    ANSWER_TRUNCATED = 8  # the answer was longer than the labels
    STAGE1_WINDOWS_DROPPED = 16  # more stage-1 windows than a batch has place for; the last ones went
    NO_STAGE1_WINDOWS = 32  # no stage-1 windows; the whole video stands for them
    TRUE_WINDOW_CLIPPED = 64  # a true window reaches beyond the video, and was shortened

    def describe(self) -> list[str]:
        """Return the notes in words, for reports."""
        return [flag.name.lower().replace("_", " ") for flag in RowFlag if flag in self and flag.name]


@dataclass(frozen=True)
class TextSizes:
    """Shapes of the textual part of a batch."""

    frames: int  # T
    captions: int  # C
    bert_tokens: int  # U, BERT tokens
    text_tokens: int  # M, T5 tokens of all that may enter a prompt
    answer_tokens: int  # A
    max_text: int = 200  # T5 tokens of the text, and of one caption

    @property
    def spans(self) -> int:
        """The I of a batch."""
        return self.frames + self.captions + NUM_FIXED_SPANS


@dataclass(frozen=True)
class Caption:
    """What is said from second `start` to second `end`."""

    start: Number
    end: Number
    text: str


@dataclass(frozen=True)
class TextRow:
    """The textual part of one row of a `Batch`, in its shapes, and what did not fit."""

    tokens: Int32[np.ndarray, " M"]
    spans: Int32[np.ndarray, "I 2"]
    query_bert_tokens: Int32[np.ndarray, " U"]
    caption_bert_tokens: Int32[np.ndarray, "C U"]
    labels: Int32[np.ndarray, " A"]
    row_flags: RowFlag
