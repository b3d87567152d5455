"""Queries answered: what a compiled prediction brings back, put into words and seconds.

Dimensions: B batch, T frames, S slots, C captions, K beams.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.inference.predict_step import BatchPrediction
from calce_jax.models.keyframes.plan import Treatment
from calce_jax.moments.scoring import QueryMoments, score_moments
from calce_jax.moments.windows import WindowOrder
from calce_jax.text.prompt import decode_answer


class InferenceError(UserError):
    """A query cannot be answered; the message names it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model made of one query.

    Attributes:
      row: of the query in its table.
      moments: scored and ranked.
      treatments: what became of each frame, in order of time.
      caption_similarity: of each caption of the batch row to the query, in [-1, 1].
      used_captions: numbers of the captions in the prompt, most similar first.
    """

    row: int
    moments: QueryMoments
    treatments: Sequence[Treatment]
    caption_similarity: Sequence[float]
    used_captions: Sequence[int]


def decode_answers(
    prediction: BatchPrediction,
    t5: PreTrainedTokenizerBase,
    *,
    window_order: WindowOrder,
    behaviour: Behaviour = "default",
) -> Iterator[Answer]:
    """Read the answers to the valid rows of a prediction.

    Args:
      prediction: on the host, as numpy.
      t5: the tokenizer the answers are written in.
      window_order: the order of the windows of an answer.
      behaviour: see `calce_jax.moments.scoring`.

    Raises:
      InferenceError: under "reference", for a query on which the original stops.
    """
    answers, plan, choice = prediction.answers, prediction.reading.frame_plan, prediction.reading.caption_selection
    batch = prediction.about
    for i in np.flatnonzero(batch.row_mask):
        duration = float(batch.duration[i])
        if plan.reference_error[i]:
            raise InferenceError(
                f"query in row {int(batch.example_index[i])}: the original stops here, on windows outside the video or fewer "
                "frames than clusters",
                "use behaviour=default",
            )
        answer_moments = score_moments(
            [decode_answer(t5, ids) for ids in answers.tokens[i]],
            [float(value) for value in answers.log_probability[i]],
            int(duration) if duration.is_integer() else duration,
            window_order=window_order,
            behaviour=behaviour,
        )
        yield Answer(
            row=int(batch.example_index[i]),
            moments=answer_moments,
            treatments=frame_treatments(
                plan.frame_index[i], plan.slot_mask[i], plan.is_keyframe[i], int(batch.frame_mask[i].sum())
            ),
            caption_similarity=[float(value) for value in choice.similarity[i]],
            used_captions=[int(n) for n, used in zip(choice.caption_index[i], choice.is_used[i], strict=True) if used],
        )


def frame_treatments(index: np.ndarray, kept: np.ndarray, is_keyframe: np.ndarray, frames: int) -> list[Treatment]:
    """Say what became of each of a video's frames; the first three are one row of a plan."""
    result: list[Treatment] = ["dropped"] * frames
    for frame, in_prompt, in_full in zip(index, kept, is_keyframe, strict=True):
        if in_prompt:
            result[int(frame)] = "full" if in_full else "compressed"
    return result
