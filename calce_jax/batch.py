"""What the host hands to the device: one batch of queries about videos, every array of a fixed shape.

Dimensions: B queries, T frames, Y X pixels, P tokens of a frame, D their width, G scales of a token, F width of
the tower, M text tokens, I spans, C captions, U words (BERT tokens), W windows, A answer tokens.

All the text that may enter a prompt lies end to end in `tokens`; `spans` says where each piece starts and how long it
is. Which pieces enter, and in what order, is decided on the device (`calce_jax.models.prompt_packing`), where the key frames and the
captions that resemble the query are known. The I = T + C + 4 spans are, in order:

    T   the time of each frame
    1   the end of the video part: ">", the duration, "<extra_id_0>"
    C   the captions, each "[" start text end "]"
    1   what stands in for captions where none is used
    1   the end of the caption part: "<extra_id_1>"
    1   the text: query, reference windows (stage 2), items, task, "</s>"
"""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
from flax import struct
from jaxtyping import Array, Bool, Float, Float32, Int, Shaped, UInt8
from numpy import ndarray

# numpy on the host, jax on the device, shapes alone where a program is compiled ahead; a type checker need not know.
if TYPE_CHECKING:
    AnyArray: TypeAlias = Any
else:
    AnyArray = Array | ndarray | jax.ShapeDtypeStruct

NUM_FIXED_SPANS = 4


@struct.dataclass
class Features:
    """What the vision tower gives of frames, or the Q-Former says of them, as it is stored (`calce_jax.models.feature_codec`)."""

    values: Shaped[AnyArray, "B T P D"]  # float32, bfloat16 or int8; 0 where there is no frame
    scale: Float32[AnyArray, "B T P G"] | None = (
        None  # of int8 alone: what the values of D // G channels are multiples of
    )
    means: Float32[AnyArray, "B T F"] | None = (
        None  # of the Q-Former alone, which has Q tokens: see `QFormerFeatures.means`
    )


@struct.dataclass
class Batch:
    """A batch, on the host as numpy and on the device as jax arrays."""

    frames: UInt8[AnyArray, "B T Y X 3"]  # RGB; of no pixels where there are features
    frame_mask: Bool[AnyArray, "B T"]  # a real frame; videos shorter than T frames leave the last ones empty
    times: Float[AnyArray, "B T"]  # seconds
    duration: Float[AnyArray, " B"]  # seconds
    tokens: Int[AnyArray, "B M"]  # T5 ids
    spans: Int[AnyArray, "B I 2"]  # start and length in `tokens`; length 0 where there is nothing
    query_bert_tokens: Int[AnyArray, "B U"]  # BERT ids of the query, 0 where padded
    caption_bert_tokens: Int[AnyArray, "B C U"]  # BERT ids of each caption; all 0 where there is none
    is_speech_query: Bool[AnyArray, " B"]  # the query is about somebody talking
    has_speech: Bool[AnyArray, "B T"]  # somebody talks while the frame is shown
    stage1_windows: Float[AnyArray, "B W 2"]  # seconds; the stage-1 windows, read by stage 2
    window_mask: Bool[AnyArray, "B W"]
    labels: Int[AnyArray, "B A"]  # T5 ids of the answer, 0 where padded
    row_mask: Bool[AnyArray, " B"]  # False for the rows that fill up the last batch of an evaluation
    example_index: Int[AnyArray, " B"]  # row of the queries table
    row_flags: Int[AnyArray, " B"]  # bits of `calce_jax.text.prompt.Note`: what of the row did not fit, or was mended
    features: Features | None = None  # what the tower gave of the frames before, in their place

    def without_frames(self) -> "Batch":
        """Return the same with frames of no pixels and no features, which are nearly all of its bytes."""
        return replace(self, frames=self.frames[:, :, :0, :0], features=None)
