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
from calce_jax.moments.scoring import Moments, moments
from calce_jax.moments.windows import RankBy
from calce_jax.text.prompt import answer_text


class InferenceError(UserError):
    """A query cannot be answered; the message names it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model made of one query.

    Attributes:
      row: of the query in its table.
      moments: scored and ranked.
      treatments: what became of each frame, in order of time.
      similarity: of each caption of the batch row to the query, in [-1, 1].
      used: numbers of the captions in the prompt, most similar first.
    """

    row: int
    moments: Moments
    treatments: Sequence[Treatment]
    similarity: Sequence[float]
    used: Sequence[int]


def read_answers(
    prediction: BatchPrediction,
    t5: PreTrainedTokenizerBase,
    *,
    by: RankBy,
    behaviour: Behaviour = "default",
) -> Iterator[Answer]:
    """Read the answers to the valid rows of a prediction.

    Args:
      prediction: on the host, as numpy.
      t5: the tokenizer the answers are written in.
      by: the order of the windows of an answer.
      behaviour: see `calce_jax.moments.scoring`.

    Raises:
      InferenceError: under "reference", for a query on which the original stops.
    """
    answers, plan, choice = prediction.answers, prediction.reading.plan, prediction.reading.choice
    batch = prediction.about
    for i in np.flatnonzero(batch.valid):
        duration = float(batch.duration[i])
        if plan.error[i]:
            raise InferenceError(
                f"query in row {int(batch.row[i])}: the original stops here, on windows outside the video or fewer "
                "frames than clusters",
                "use behaviour=default",
            )
        found = moments(
            [answer_text(t5, ids) for ids in answers.tokens[i]],
            [float(value) for value in answers.log_probability[i]],
            int(duration) if duration.is_integer() else duration,
            by=by,
            behaviour=behaviour,
        )
        yield Answer(
            row=int(batch.row[i]),
            moments=found,
            treatments=treatments(plan.index[i], plan.kept[i], plan.key[i], int(batch.present[i].sum())),
            similarity=[float(value) for value in choice.similarity[i]],
            used=[int(n) for n, used in zip(choice.order[i], choice.used[i], strict=True) if used],
        )


def treatments(index: np.ndarray, kept: np.ndarray, key: np.ndarray, frames: int) -> list[Treatment]:
    """Say what became of each of a video's frames; the first three are one row of a plan."""
    found: list[Treatment] = ["dropped"] * frames
    for frame, in_prompt, in_full in zip(index, kept, key, strict=True):
        if in_prompt:
            found[int(frame)] = "full" if in_full else "compressed"
    return found
