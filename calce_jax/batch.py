"""The input of the device: one batch of queries about videos, every array of a fixed shape.

Dimensions: B queries, T frames, Y X pixels, P tokens of a frame, D their width, G scales of a token, F width of the
vision tower, M text tokens, I spans, C captions, U BERT tokens, W windows, A answer tokens.

`tokens` is the concatenation of all text that may enter a prompt; `spans` holds the start and length of each piece.
Which pieces enter, and in what order, is decided on the device (`calce_jax.models.prompt_packing`), after key frames
and captions have been selected. The I = T + C + 4 spans are, in order:

    T   the time of each frame
    1   the end of the video part: ">", the duration, "<extra_id_0>"
    C   the captions, each "[" start text end "]"
    1   the replacement for captions where none is used
    1   the end of the caption part: "<extra_id_1>"
    1   the text: query, stage-1 windows (stage 2), items, task, "</s>"
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt8
from numpy import ndarray

# numpy on the host, jax on the device, shapes where a program is compiled ahead of time. Type checkers see Any.
if TYPE_CHECKING:
    AnyArray: TypeAlias = Any
else:
    AnyArray = Array | ndarray | jax.ShapeDtypeStruct

NUM_FIXED_SPANS = 4


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Features:
    """Stored tokens of frames, of the vision tower or the Q-Former; `calce_jax.models.feature_codec` decodes them.

    Attributes:
      values: float32, bfloat16 or int8; 0 where there is no frame. The Q-Former's have P = Q and D = its width.
      scale: int8 only: the quantization step of each group of D // G channels.
      means: Q-Former only: see `QFormerFeatures.means`.
    """

    values: Shaped[AnyArray, "B T P D"]
    scale: Float32[AnyArray, "B T P G"] | None = None
    means: Float32[AnyArray, "B T F"] | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """A batch, on the host as numpy and on the device as jax arrays."""

    frames: UInt8[AnyArray, "B T Y X 3"]  # RGB; Y = X = 0 where there are features
    frame_mask: Bool[AnyArray, "B T"]  # True for real frames, a prefix; videos shorter than T frames are padded
    times: Float[AnyArray, "B T"]  # seconds
    duration: Float[AnyArray, " B"]  # seconds
    tokens: Int[AnyArray, "B M"]  # T5 ids
    spans: Int[AnyArray, "B I 2"]  # start and length in `tokens`; length 0 for an absent piece
    query_bert_tokens: Int[AnyArray, "B U"]  # BERT ids of the query, 0 where padded
    caption_bert_tokens: Int[AnyArray, "B C U"]  # BERT ids of each caption; all 0 for an absent one
    caption_positions: Int[AnyArray, "B C"]  # of each among the cleaned captions of its video; -1 for an absent one
    is_speech_query: Bool[AnyArray, " B"]  # the query is about speech, and the video has captions
    has_speech: Bool[AnyArray, "B T"]  # a caption overlaps the frame
    stage1_windows: Float[AnyArray, "B W 2"]  # seconds; input of stage 2
    window_mask: Bool[AnyArray, "B W"]
    labels: Int[AnyArray, "B A"]  # T5 ids of the answer, 0 where padded
    row_mask: Bool[AnyArray, " B"]  # False for the padding rows of the last batch of an evaluation
    example_index: Int[AnyArray, " B"]  # row of the queries table; -1 for padding
    row_flags: Int[AnyArray, " B"]  # bits of `calce_jax.text.text_row.RowFlag`
    features: Features | None = None  # replaces `frames`
    # The cosine of each caption with the query; None: computed from the BERT ids.
    caption_similarity: Float32[AnyArray, "B C"] | None = None
    # Top, left, height and width in pixels of the rectangle that replaces each clip (`calce_jax.models.crops`); None
    # leaves frames whole, and programs without crops.
    crop: Int[AnyArray, "B 4"] | None = None

    @classmethod
    def zeros(
        cls,
        batch_size: int,
        *,
        frames: int,
        image_size: int,
        captions: int,
        bert_tokens: int,
        text_tokens: int,
        windows: int,
        answer_tokens: int,
    ) -> "Batch":
        """Return a batch of numpy zeros of padding rows, whose fields are to be set with `dataclasses.replace`.

        Args:
          batch_size: B.
          frames: T.
          image_size: Y and X, pixels; 0 where features replace the frames.
          captions, bert_tokens, text_tokens, windows, answer_tokens: C, U, M, W and A.
        """

        def zeros(dtype: type, *shape: int) -> np.ndarray:
            return np.zeros((batch_size, *shape), dtype)

        return cls(
            frames=zeros(np.uint8, frames, image_size, image_size, 3),
            frame_mask=zeros(bool, frames),
            times=zeros(np.float32, frames),
            duration=zeros(np.float32),
            tokens=zeros(np.int32, text_tokens),
            spans=zeros(np.int32, frames + captions + NUM_FIXED_SPANS, 2),
            query_bert_tokens=zeros(np.int32, bert_tokens),
            caption_bert_tokens=zeros(np.int32, captions, bert_tokens),
            caption_positions=np.full((batch_size, captions), -1, np.int32),
            is_speech_query=zeros(bool),
            has_speech=zeros(bool, frames),
            stage1_windows=zeros(np.float32, windows, 2),
            window_mask=zeros(bool, windows),
            labels=zeros(np.int32, answer_tokens),
            row_mask=zeros(bool),
            example_index=np.full(batch_size, -1, np.int32),
            row_flags=zeros(np.int32),
        )

    def without_frames(self) -> "Batch":
        """Return the batch without pixels, crops of them, and what was computed: nearly all of its bytes."""
        return replace(self, frames=self.frames[:, :, :0, :0], features=None, caption_similarity=None, crop=None)
