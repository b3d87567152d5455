"""The two programs that run on the device: one training step, one prediction.

Each is compiled once. The prompt of a batch is as long as its longest sample needs, rounded up to one of a few lengths
("buckets"); which one is decided on the device, by a switch between the same computation at each length, so the host
never waits for the device in the middle of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from calce_jax.batch import Batch
from calce_jax.config import Behaviour, RunConfig
from calce_jax.models.beam_search import Answers, beam_search
from calce_jax.models.calce import Calce, Reading, Selection
from calce_jax.models.feature_codec import seen_in
from calce_jax.models.keyframes.reference_noise import Chance, draw_chance
from calce_jax.models.layers import Key, Remat
from calce_jax.models.vision_features import Looked, Seen


@dataclass(frozen=True)
class StepConfig:
    """What both programs need to know beside the model.

    Fields:
      selection: how key frames and captions are chosen.
      buckets: prompt lengths in tokens, ascending. A prompt longer than the last is cut at the right, and counted.
      remat: what the backward pass recomputes.
      beams, answer_length: of the search; the length in tokens includes the end.
    """

    selection: Selection
    buckets: tuple[int, ...]
    remat: Remat = "none"
    beams: int = 5
    answer_length: int = 70

    @property
    def behaviour(self) -> Behaviour:
        """The selection's: one switch for the whole run."""
        return self.selection.behaviour


@struct.dataclass
class BatchPrediction:
    """What is brought back for each sample of a batch: to every host for all of them, wherever they were read."""

    answers: Answers
    reading: Reading
    about: Batch  # without frames


def at_bucket(buckets: tuple[int, ...], needed: Int[Array, " B"], run: Callable[[int], Any]) -> tuple[Any, Array]:
    """Run `run(length)` at the smallest bucket that holds the longest prompt; also return that length."""
    lengths = jnp.array(buckets, jnp.int32)
    index = jnp.minimum((needed.max() > lengths).sum(), len(buckets) - 1)
    branches = [lambda length=length: run(length) for length in buckets]
    return jax.lax.switch(index, branches), lengths[index]


def chance_of(config: StepConfig, batch: Batch, key: Key = None) -> Chance | None:
    """Return what the selection of a batch draws: under "reference" as the original does, otherwise nothing.

    Without a key, as in evaluation, a row meets the same chance whenever it is asked; there every run is another.
    """
    if config.behaviour == "default":
        return None
    return draw_chance(jax.random.key(0) if key is None else key, batch.row, batch.present.shape[1])


def make_predict(graph: Any, config: StepConfig) -> Callable[[nnx.State, nnx.State, Batch], BatchPrediction]:
    """Build `predict(trainable, frozen, batch) -> BatchPrediction`, to be jitted. The same rows get the same answers."""

    def predict(trainable: nnx.State, frozen: nnx.State, batch: Batch) -> BatchPrediction:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return predicted(model, config, seen_in(model, batch), batch)

    return predict


def predicted(model: Calce, config: StepConfig, seen: Seen, batch: Batch) -> BatchPrediction:
    """Answer the queries of a batch about what was seen; its frames are not read."""
    reading = model.read(seen, batch, config.selection, chance=chance_of(config, batch))

    def run(length: int) -> Answers:
        x, mask = model.embed(seen, batch, reading, length)
        memory = model.t5.encode(x, mask)
        return beam_search(
            model.t5, memory, mask, beams=config.beams, length=config.answer_length, behaviour=config.behaviour
        )

    answers, _ = at_bucket(config.buckets, reading.needed, run)
    return BatchPrediction(answers=answers, reading=reading, about=batch.without_frames())


def compile_predict(predict: Callable[..., BatchPrediction], mesh: Mesh) -> Callable[..., BatchPrediction]:
    """Jit what `make_predict` built, so that every host gets the predictions of all of them."""
    return jax.jit(predict, out_shardings=NamedSharding(mesh, PartitionSpec()))


def step_config(config: RunConfig, answer_tokens: int) -> StepConfig:
    """Return what the two programs need to know; answers may have `answer_tokens`."""
    return StepConfig(
        selection=Selection(
            stage=config.stage,
            mode=config.keyframes.mode,
            clusters=config.keyframes.clusters,
            dilation=config.keyframes.dilation,
            filter_dilation=config.keyframes.filter_dilation,
            behaviour=config.behaviour,
        ),
        buckets=config.text.buckets,
        remat=config.model.remat,
        beams=config.generation.beams,
        answer_length=answer_tokens,
    )


def make_look(graph: Any) -> Callable[[nnx.State, nnx.State, UInt8[Array, "B T Y X 3"]], Looked]:
    """Build `look(trainable, frozen, frames) -> Looked`, to be jitted."""

    def look(trainable: nnx.State, frozen: nnx.State, frames: UInt8[Array, "B T Y X 3"]) -> Looked:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return model.look(model.see(frames))

    return look


def make_answer(graph: Any, config: StepConfig) -> Callable[[nnx.State, nnx.State, Looked, Batch], BatchPrediction]:
    """Build `answer(trainable, frozen, looked, batch) -> BatchPrediction`, to be jitted. It does not read `batch.frames`."""

    def answer(trainable: nnx.State, frozen: nnx.State, looked: Looked, batch: Batch) -> BatchPrediction:
        return predicted(nnx.merge(graph, trainable, frozen), config, looked, batch)

    return answer
