"""The text of a batch row: shapes, token ids, and flags of what did not fit."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag

import numpy as np
from jaxtyping import Int32

from calce_jax.batch import NUM_FIXED_SPANS
from calce_jax.text.caption import Number

Windows = Sequence[Sequence[Number]] | np.ndarray


class RowFlag(IntFlag):
    """What was truncated, dropped or replaced in a row; the bits of `Batch.row_flags`."""

    QUERY_TRUNCATED = 1  # the text exceeded `TextSizes.max_text` tokens, or the query `TextSizes.bert_tokens`
    CAPTION_TRUNCATED = 2  # a caption exceeded the same limits
    CAPTIONS_DROPPED = 4  # captions exceeded C or M; those that share least with the query were dropped
    ANSWER_TRUNCATED = 8  # the answer exceeded A tokens
    STAGE1_WINDOWS_DROPPED = 16  # stage-1 windows exceeded W; the last ones were dropped
    NO_STAGE1_WINDOWS = 32  # no stage-1 windows; the whole video replaces them
    TRUE_WINDOW_CLIPPED = 64  # a true window reached beyond the video
    NO_NEGATIVE = 128  # of a training row: no drawn query of another video was surely absent, so its own one stays
    NO_BACKGROUND = 256  # of a training row: no drawn video surely lacked the query, so its own frames stay

    def describe(self) -> list[str]:
        """Return the names of the flags that are set, in words, for reports."""
        return [flag.name.lower().replace("_", " ") for flag in RowFlag if flag in self and flag.name]


@dataclass(frozen=True)
class TextSizes:
    """Shapes of the text of a batch."""

    frames: int  # T
    captions: int  # C
    bert_tokens: int  # U, BERT tokens
    text_tokens: int  # M, T5 tokens of all pieces that may enter a prompt
    answer_tokens: int  # A
    max_text: int = 200  # most T5 tokens of the text, and of one caption

    @property
    def spans(self) -> int:
        """I, the number of spans."""
        return self.frames + self.captions + NUM_FIXED_SPANS


@dataclass(frozen=True)
class TextRow:
    """The text of one row of a `Batch`, padded to `TextSizes`."""

    tokens: Int32[np.ndarray, " M"]
    spans: Int32[np.ndarray, "I 2"]
    query_bert_tokens: Int32[np.ndarray, " U"]
    caption_bert_tokens: Int32[np.ndarray, "C U"]
    caption_positions: Int32[np.ndarray, " C"]
    labels: Int32[np.ndarray, " A"]
    row_flags: RowFlag
