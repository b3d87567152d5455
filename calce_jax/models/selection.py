"""How key frames and captions are selected, and which were.

Dimensions: B batch, C captions, K captions of a prompt.
"""

from dataclasses import dataclass
from typing import Literal

import jax
from jaxtyping import Bool, Float, Int

from calce_jax.batch import AnyArray
from calce_jax.config import Behaviour, KeyframeMode
from calce_jax.models.keyframes.plan import FramePlan


@dataclass(frozen=True)
class SelectionConfig:
    """How key frames and captions are selected."""

    stage: Literal[1, 2]
    mode: KeyframeMode = "cluster"
    clusters: int = 12
    dilation: int = 1  # frames by which key frames are dilated on either side
    filter_dilation: int = 1  # stage 2: frames by which the selected frames are dilated on either side
    max_captions: int = 5
    caption_block: int = 64  # captions of a row that are embedded at once; C is at most this, or a multiple of it
    min_similarity: float = 0.9  # a caption is used if its cosine with the query is greater
    behaviour: Behaviour = "default"


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CaptionSelection:
    """The captions of a prompt, most similar to the query first."""

    caption_index: Int[AnyArray, "*B K"]  # index into the captions
    is_used: Bool[AnyArray, "*B K"]
    similarity: Float[AnyArray, "*B C"]  # cosine with the query, of every caption


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PromptSelection:
    """Frames and captions that enter the prompts of a batch."""

    frame_plan: FramePlan
    caption_selection: CaptionSelection
    prompt_lengths: Int[AnyArray, " B"]  # tokens of each prompt
