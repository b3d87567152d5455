"""The two programs that run on the device: one training step, one prediction.

Each is compiled once. The prompt of a batch is as long as its longest sample needs, rounded up to one of a few lengths
("buckets"); which one is decided on the device, by a switch between the same computation at each length, so the host
never waits for the device in the middle of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray

from calce_jax.batch import Batch
from calce_jax.features import seen_in
from calce_jax.generate import Answers, beam_search
from calce_jax.keyframes.chance import Chance, draw_chance
from calce_jax.models.calce import Calce, Reading, Selection
from calce_jax.models.layers import Key, Keys, Remat
from calce_jax.models.seen import Seen
from calce_jax.training.state import TrainState, apply_gradients, is_finite


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
    def behaviour(self) -> Literal["default", "reference"]:
        """The selection's: one switch for the whole run."""
        return self.selection.behaviour


@struct.dataclass
class Prediction:
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


def make_train_step(
    graph: Any,
    config: StepConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: Callable[[Int[Array, ""]], Float[Array, ""]],
) -> Callable[[TrainState, nnx.State, Batch, PRNGKeyArray], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Build `step(state, frozen, batch, key) -> (state, metrics)`, to be jitted with `state` donated.

    Args:
      graph: the model's structure, from `calce.split`.
      config: buckets, selection, remat.
      optimizer: from `make_optimizer`.
      learning_rate: of the micro-step.

    Metrics are float32 scalars: loss, learning_rate, gradient_norm, skipped (1 where loss or gradient_norm is not
    finite; such a step is not applied, see `apply_gradients`), tokens (of all prompts), padding (the share of prompt
    positions that hold nothing), cut (prompts longer than the last bucket), key_frames (a sample).
    """

    def step(
        state: TrainState, frozen: nnx.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        keys = Keys(jax.random.fold_in(key, state.step))
        model: Calce = nnx.merge(graph, state.trainable, frozen)
        seen = seen_in(model, batch)
        drop_key, loss_key = keys(), keys()
        reading = model.read(seen, batch, config.selection, key=drop_key, chance=chance_of(config, batch, keys()))
        count = jnp.maximum(batch.valid.sum(), 1).astype(jnp.float32)

        def run(length: int) -> tuple[Array, nnx.State]:
            def mean_loss(trainable: nnx.State) -> Float[Array, ""]:
                model: Calce = nnx.merge(graph, trainable, frozen)
                each = model.loss(
                    seen,
                    batch,
                    reading,
                    length,
                    key=loss_key,
                    remat=config.remat,
                    behaviour=config.behaviour,
                )
                return jnp.where(batch.valid, each, 0.0).sum() / count

            return jax.value_and_grad(mean_loss)(state.trainable)

        # The gradient is taken inside the switch: taken outside, every bucket's residuals would be kept.
        (loss, gradients), length = at_bucket(config.buckets, reading.needed, run)
        rate = learning_rate(state.step)
        gradient_norm = optax.tree.norm(gradients)
        finite = is_finite(loss, gradient_norm)
        tokens = jnp.minimum(reading.needed, length).sum().astype(jnp.float32)
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": gradient_norm,
            "skipped": (~finite).astype(jnp.float32),
            "tokens": tokens,
            "padding": 1.0 - tokens / (length * reading.needed.shape[0]).astype(jnp.float32),
            "cut": (reading.needed > length).sum().astype(jnp.float32),
            "key_frames": (reading.plan.key & reading.plan.kept).sum().astype(jnp.float32) / count,
        }
        return apply_gradients(state, gradients, optimizer, rate, finite=finite), metrics

    return step


def compile_train_step(
    step: Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]], state: TrainState
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Jit what `make_train_step` built; the new state takes the place of the old one, and lives where it lived.

    Args:
      step: from `make_train_step`.
      state: whose shardings the new one gets; arrays, or `jax.ShapeDtypeStruct`s with shardings.
    """
    # Left to itself XLA lays the new state out in its own way, and the second step is compiled again.
    places = jax.tree.map(lambda a: a.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(places, None))


def make_predict(graph: Any, config: StepConfig) -> Callable[[nnx.State, nnx.State, Batch], Prediction]:
    """Build `predict(trainable, frozen, batch) -> Prediction`, to be jitted. The same rows get the same answers."""

    def predict(trainable: nnx.State, frozen: nnx.State, batch: Batch) -> Prediction:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return predicted(model, config, seen_in(model, batch), batch)

    return predict


def predicted(model: Calce, config: StepConfig, seen: Seen, batch: Batch) -> Prediction:
    """Answer the queries of a batch about what was seen; its frames are not read."""
    reading = model.read(seen, batch, config.selection, chance=chance_of(config, batch))

    def run(length: int) -> Answers:
        x, mask = model.embed(seen, batch, reading, length)
        memory = model.t5.encode(x, mask)
        return beam_search(
            model.t5, memory, mask, beams=config.beams, length=config.answer_length, behaviour=config.behaviour
        )

    answers, _ = at_bucket(config.buckets, reading.needed, run)
    return Prediction(answers=answers, reading=reading, about=batch.without_frames())


def compile_predict(predict: Callable[..., Prediction], mesh: Mesh) -> Callable[..., Prediction]:
    """Jit what `make_predict` built, so that every host gets the predictions of all of them."""
    return jax.jit(predict, out_shardings=NamedSharding(mesh, PartitionSpec()))
