"""What the model sees in a video, whatever is asked about it: computed once, kept, asked many times.

Of the two halves of a prediction the first, the towers over every frame, does not depend on the query. `make_look`
builds it and `make_answer` the second; one after the other they are what `calce_jax.step.make_predict` builds at once.

Dimensions: B videos, T frames, Y X pixels.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jaxtyping import Array, UInt8

from calce_jax.batch import Batch
from calce_jax.models.calce import Calce
from calce_jax.models.seen import Looked
from calce_jax.step import Prediction, StepConfig, predicted


def make_look(graph: Any) -> Callable[[nnx.State, nnx.State, UInt8[Array, "B T Y X 3"]], Looked]:
    """Build `look(trainable, frozen, frames) -> Looked`, to be jitted."""

    def look(trainable: nnx.State, frozen: nnx.State, frames: UInt8[Array, "B T Y X 3"]) -> Looked:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return model.look(model.see(frames))

    return look


def make_answer(graph: Any, config: StepConfig) -> Callable[[nnx.State, nnx.State, Looked, Batch], Prediction]:
    """Build `answer(trainable, frozen, looked, batch) -> Prediction`, to be jitted. It does not read `batch.frames`."""

    def answer(trainable: nnx.State, frozen: nnx.State, looked: Looked, batch: Batch) -> Prediction:
        return predicted(nnx.merge(graph, trainable, frozen), config, looked, batch)

    return answer
