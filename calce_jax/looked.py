"""What the model sees in a video, whatever is asked about it: computed once, kept, asked many times.

Of the two halves of a prediction the first, the towers over every frame, does not depend on the query. `make_look`
builds it and `make_answer` the second; one after the other they are what `calce_jax.step.make_predict` builds at once.

Dimensions: B videos, T frames, Y X pixels, D width of the ViT, Q query tokens, W width of the Q-Former.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx, struct
from jaxtyping import Array, Float, UInt8

from calce_jax.batch import Batch, Data
from calce_jax.generate import Answers, beam_search
from calce_jax.models.calce import Calce, unit_rows
from calce_jax.step import Prediction, StepConfig, at_bucket, chance_of


@struct.dataclass
class Looked:
    """What is seen: at the full size 4 MB for 75 frames, a thirteenth of what the ViT gives."""

    means: Float[Data, "B T D"]  # what stage 1 tells frames apart by
    queries: Float[Data, "B T Q W"]  # in the dtype of the activations


def make_look(graph: Any) -> Callable[[nnx.State, nnx.State, UInt8[Array, "B T Y X 3"]], Looked]:
    """Build `look(trainable, frozen, frames) -> Looked`, to be jitted."""

    def look(trainable: nnx.State, frozen: nnx.State, frames: UInt8[Array, "B T Y X 3"]) -> Looked:
        model: Calce = nnx.merge(graph, trainable, frozen)
        seen = model.see(frames)
        return Looked(means=model.means(seen), queries=model.queries(seen))

    return look


def make_answer(graph: Any, config: StepConfig) -> Callable[[nnx.State, nnx.State, Looked, Batch], Prediction]:
    """Build `answer(trainable, frozen, looked, batch) -> Prediction`, to be jitted. It does not read `batch.frames`."""

    def answer(trainable: nnx.State, frozen: nnx.State, looked: Looked, batch: Batch) -> Prediction:
        model: Calce = nnx.merge(graph, trainable, frozen)
        features = looked.means if config.selection.stage == 1 else unit_rows(looked.queries)
        reading = model.choose(features, batch, config.selection, chance=chance_of(config, batch))
        described = model.described(jnp.take_along_axis(looked.queries, reading.plan.index[:, :, None, None], axis=1))

        def run(length: int) -> Answers:
            x, mask = model.lay_out(described, batch, reading, length)
            memory = model.t5.encode(x, mask)
            return beam_search(
                model.t5, memory, mask, beams=config.beams, length=config.answer_length, behaviour=config.behaviour
            )

        answers, _ = at_bucket(config.buckets, reading.needed, run)
        return Prediction(answers=answers, reading=reading, about=batch.without_frames())

    return answer
