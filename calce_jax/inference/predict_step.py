"""The compiled prediction, and what it shares with the training step (`calce_jax.training.train_step`).

Each is compiled once for several prompt lengths, the buckets. A batch runs at the smallest bucket that holds its
longest prompt. The device chooses the bucket, by a switch between the same computation at each length, so the host does
not wait for the device in the middle of a step.

Dimensions: B batch, T frames, Y X pixels.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, UInt8

from calce_jax.batch import Batch
from calce_jax.distributed.param_names import Params
from calce_jax.inference.prediction import BatchPrediction, StepConfig
from calce_jax.models.beam_search import beam_search
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import load_or_encode
from calce_jax.models.keyframes.reference_noise import ReferenceNoise, draw_reference_noise
from calce_jax.models.layers import Key
from calce_jax.models.vision_features import QFormerFeatures, VisionFeatures


def switch_bucket(
    buckets: tuple[int, ...], prompt_lengths: Int[Array, " B"], run: Callable[[int], Any]
) -> tuple[Any, Array]:
    """Run `run(length)` at the smallest bucket that holds the longest prompt, or at the last one.

    Returns:
      The result, and the bucket's length as an int32 scalar.
    """
    lengths = jnp.array(buckets, jnp.int32)
    index = jnp.minimum((prompt_lengths.max() > lengths).sum(), len(buckets) - 1)
    branches = [lambda length=length: run(length) for length in buckets]
    return jax.lax.switch(index, branches), lengths[index]


def draw_noise_for_batch(config: StepConfig, batch: Batch, key: Key = None) -> ReferenceNoise | None:
    """Return the random numbers of the original's selection; None under "default", which draws none.

    Without a key, as in evaluation, they depend on `example_index` alone, so that a query always gets the same ones;
    the original draws new ones in every run.
    """
    if config.behaviour == "default":
        return None
    return draw_reference_noise(
        jax.random.key(0) if key is None else key, batch.example_index, batch.frame_mask.shape[1]
    )


def make_predict(graph: Any, config: StepConfig) -> Callable[[Params, Params, Batch], BatchPrediction]:
    """Build `predict(trainable, frozen, batch) -> BatchPrediction`, to be jitted; it is deterministic."""

    def predict(trainable: Params, frozen: Params, batch: Batch) -> BatchPrediction:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return predict_from_features(model, config, load_or_encode(model, batch), batch)

    return predict


def predict_from_features(
    model: Calce, config: StepConfig, vision_features: VisionFeatures, batch: Batch
) -> BatchPrediction:
    """Predict the queries of a batch from encoded frames; `batch.frames` is not read."""
    prompt_selection = model.select(
        vision_features, batch, config.selection, reference_noise=draw_noise_for_batch(config, batch)
    )

    def run(length: int) -> BeamSearchOutput:
        x, mask = model.embed_prompt(vision_features, batch, prompt_selection, length)
        memory = model.t5.encode(x, mask)
        return beam_search(
            model.t5,
            memory,
            mask,
            num_beams=config.num_beams,
            max_length=config.max_answer_length,
            behaviour=config.behaviour,
            grammar=config.grammar,
            duration=batch.duration,
        )

    answers, _ = switch_bucket(config.buckets, prompt_selection.prompt_lengths, run)
    return BatchPrediction(answers=answers, prompt_selection=prompt_selection, batch=batch.without_frames())


def compile_predict(
    predict: Callable[..., BatchPrediction], mesh: Mesh, options: dict[str, str] | None = None
) -> Callable[..., BatchPrediction]:
    """Jit a function from `make_predict` with replicated outputs: every host gets the predictions of all rows.

    Args:
      predict: the function.
      mesh: the devices of its arguments.
      options: from `calce_jax.distributed.compiler_options`.
    """
    return jax.jit(predict, out_shardings=NamedSharding(mesh, PartitionSpec()), compiler_options=options)


def make_encode_video(graph: Any) -> Callable[[Params, Params, UInt8[Array, "B T Y X 3"]], QFormerFeatures]:
    """Build `encode_video(trainable, frozen, frames) -> QFormerFeatures`, to be jitted."""

    def encode_video(trainable: Params, frozen: Params, frames: UInt8[Array, "B T Y X 3"]) -> QFormerFeatures:
        model: Calce = nnx.merge(graph, trainable, frozen)
        return model.encode_queries(model.encode_frames(frames))

    return encode_video


def make_predict_from_features(
    graph: Any, config: StepConfig
) -> Callable[[Params, Params, QFormerFeatures, Batch], BatchPrediction]:
    """Build `predict(trainable, frozen, features, batch) -> BatchPrediction`, to be jitted; frames are not read."""

    def predict(trainable: Params, frozen: Params, features: QFormerFeatures, batch: Batch) -> BatchPrediction:
        return predict_from_features(nnx.merge(graph, trainable, frozen), config, features, batch)

    return predict
