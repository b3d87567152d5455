"""Answers: the tokens of a batch prediction, decoded to windows in seconds.

Dimensions: B batch, T frames, S slots of a frame plan, K beams.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int

from calce_jax.config import Behaviour
from calce_jax.errors import UserError
from calce_jax.inference.prediction import BatchPrediction
from calce_jax.models.keyframes.treatment import Treatment
from calce_jax.moments.scoring import QueryMoments, score_moments
from calce_jax.moments.windows import Decision, WindowOrder, WindowSource
from calce_jax.text.answer_grammar import find_meant_seconds
from calce_jax.text.prompt import decode_answer
from calce_jax.text.text_row import RowFlag
from calce_jax.text.text_tokenizer import TextTokenizer


class InferenceError(UserError):
    """A query cannot be answered; the message names its row."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """The decoded prediction of one query.

    Fields:
      row: of the query in the queries table.
      moments: windows in seconds, scored and ranked, and the generated text.
      treatments: of each frame ("full", "compressed" or "dropped"), in order of time.
      caption_similarity: cosine similarity to the query, in [-1, 1], of each caption that was compared with it: by its
        position among the cleaned captions of the video.
      used_captions: positions of the captions in the prompt, most similar first.
      row_flags: what was truncated, dropped or replaced in the row.
    """

    row: int
    moments: QueryMoments
    treatments: Sequence[Treatment]
    caption_similarity: Mapping[int, float]
    used_captions: Sequence[int]
    row_flags: RowFlag


def decode_answers(
    prediction: BatchPrediction,
    t5: TextTokenizer,
    durations: Sequence[float],
    *,
    window_order: WindowOrder,
    window_source: WindowSource = "best_beam",
    decision: Decision = "most_probable",
    window_grid: int = 1,
    behaviour: Behaviour = "default",
) -> Iterator[Answer]:
    """Decode the predictions of the rows with `row_mask`.

    Args:
      prediction: numpy arrays on the host.
      t5: tokenizer of the answers.
      durations: of the video of each query, seconds, by `example_index`. The batch has them in float32, by which a
        window could end after its video.
      window_order: order of the windows of an answer.
      window_source: whether the windows of the other beams are listed too.
      decision: which answer of the beams is given.
      window_grid: seconds, at whose multiples windows begin and end.
      behaviour: see `calce_jax.moments.scoring`.

    Raises:
      InferenceError: under "reference", for a query on which the original raises an error.
    """
    meant_seconds = find_meant_seconds(t5, window_grid)
    answers, batch, selection = prediction.answers, prediction.batch, prediction.prompt_selection
    plan, captions = selection.frame_plan, selection.caption_selection
    for i in np.flatnonzero(batch.row_mask):
        row, positions = int(batch.example_index[i]), batch.caption_positions[i]
        duration = float(durations[row])
        if plan.reference_error[i]:
            raise InferenceError(
                f"query in row {row}: the original fails on it, because a stage-1 window lies "
                "outside the video or the video has fewer frames than clusters",
                "train with config.behaviour=default",
            )
        answer_moments = score_moments(
            [decode_answer(t5, ids) for ids in answers.tokens[i]],
            [float(value) for value in answers.log_probability[i]],
            int(duration) if duration.is_integer() else duration,
            window_order=window_order,
            window_source=window_source,
            decision=decision,
            meant_seconds=meant_seconds,
            behaviour=behaviour,
        )
        yield Answer(
            row=row,
            moments=answer_moments,
            treatments=frame_treatments(
                plan.frame_index[i], plan.slot_mask[i], plan.is_keyframe[i], int(batch.frame_mask[i].sum())
            ),
            caption_similarity={
                position: float(value)
                for position, value in zip(positions.tolist(), captions.similarity[i], strict=True)
                if position >= 0
            },
            used_captions=positions[captions.caption_index[i][captions.is_used[i]]].tolist(),
            row_flags=RowFlag(int(batch.row_flags[i])),
        )


def frame_treatments(
    frame_index: Int[np.ndarray, " S"],
    slot_mask: Bool[np.ndarray, " S"],
    is_keyframe: Bool[np.ndarray, " S"],
    num_frames: int,
) -> list[Treatment]:
    """Return the treatment of each of a video's frames, from one row of a `FramePlan`."""
    treatments: list[Treatment] = ["dropped"] * num_frames
    for frame, is_full in zip(frame_index[slot_mask], is_keyframe[slot_mask], strict=True):
        treatments[int(frame)] = "full" if is_full else "compressed"
    return treatments
