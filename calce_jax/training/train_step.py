"""The compiled training step, of any objective, and the objective of ordinary training: the likelihood of answers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from calce_jax.batch import Batch
from calce_jax.distributed.param_names import Params
from calce_jax.inference.predict_step import draw_noise_for_batch, switch_bucket
from calce_jax.inference.prediction import StepConfig
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import load_or_encode
from calce_jax.models.layers import Key, KeyStream
from calce_jax.models.selection import PromptSelection
from calce_jax.models.vision_features import VisionFeatures
from calce_jax.training.state import TrainState, apply_gradients, is_finite

Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[..., tuple[TrainState, Metrics]]
LearningRate = Callable[[Int[Array, ""]], Float[Array, ""]]


@dataclass(frozen=True)
class ObjectiveInputs:
    """What an objective is computed from, beside the trainables.

    Fields:
      frozen: frozen weights.
      reference: trainables that do not change; None where the objective has no use for them.
      vision_features: of the batch's frames.
      batch: texts, masks and labels.
      prompt_selection: key frames and captions of the prompts.
      num_rows: float32 scalar, rows that are no padding, at least 1.
      key: of the objective's randomness.
    """

    frozen: Params
    reference: Params | None
    vision_features: VisionFeatures
    batch: Batch
    prompt_selection: PromptSelection
    num_rows: Float[Array, ""]
    key: Key


# (trainables, inputs, prompt length) -> the loss of the batch and more metrics, float32 scalars.
Objective = Callable[[Params, ObjectiveInputs, int], tuple[Float[Array, ""], Metrics]]


def make_train_step(
    graph: Any, config: StepConfig, optimizer: optax.GradientTransformationExtraArgs, learning_rate: LearningRate
) -> TrainStep:
    """Build the step of ordinary training, see `make_step`; its loss is the mean cross-entropy of the true answers."""

    def mean_loss(
        trainable: Params, inputs: ObjectiveInputs, length: int
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        model: Calce = nnx.merge(graph, trainable, inputs.frozen)
        losses = model.loss(
            inputs.vision_features,
            inputs.batch,
            inputs.prompt_selection,
            length,
            key=inputs.key,
            remat=config.remat,
            behaviour=config.behaviour,
        )
        return jnp.where(inputs.batch.row_mask, losses, 0.0).sum() / inputs.num_rows, {}

    return make_step(graph, config, optimizer, learning_rate, mean_loss)


def make_step(
    graph: Any,
    config: StepConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: LearningRate,
    objective: Objective,
) -> TrainStep:
    """Build `step(state, frozen, batch, key, reference=None) -> (state, metrics)` for `compile_train_step`.

    Args:
      graph: the model's structure, from `calce_jax.models.structure.split_params`.
      config: buckets, selection, remat.
      optimizer: from `calce_jax.training.optimizer.make_optimizer`.
      learning_rate: micro-step (int32 scalar) -> rate (float32 scalar).
      objective: of which the gradient is taken.

    Returns:
      The function. Its metrics are float32 scalars: loss, learning_rate, gradient_norm, skipped (1 where loss or
      gradient_norm is not finite; such a step is not applied, see `apply_gradients`), tokens (of all prompts), padding
      (share of prompt positions without a token), truncated (prompts longer than the last bucket), key_frames (mean per
      row), and those of the objective.
    """

    def step(
        state: TrainState, frozen: Params, batch: Batch, key: PRNGKeyArray, reference: Params | None = None
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        keys = KeyStream(jax.random.fold_in(key, state.step))
        model: Calce = nnx.merge(graph, state.trainable, frozen)
        vision_features = load_or_encode(model, batch, config.behaviour)
        drop_key, objective_key = keys(), keys()
        prompt_selection = model.select(
            vision_features,
            batch,
            config.selection,
            key=drop_key,
            reference_noise=draw_noise_for_batch(config, batch, keys()),
        )
        num_rows = jnp.maximum(batch.row_mask.sum(), 1).astype(jnp.float32)
        inputs = ObjectiveInputs(
            frozen, reference, vision_features, batch, prompt_selection, num_rows, key=objective_key
        )

        def run(length: int) -> tuple[tuple[Array, dict[str, Array]], Params]:
            return jax.value_and_grad(lambda trainable: objective(trainable, inputs, length), has_aux=True)(
                state.trainable
            )

        # The gradient is taken inside the switch: taken outside, every bucket's residuals would be kept.
        ((loss, objective_metrics), gradients), length = switch_bucket(
            config.buckets, prompt_selection.prompt_lengths, run
        )
        rate = learning_rate(state.step)
        gradient_norm = optax.tree.norm(gradients)
        finite = is_finite(loss, gradient_norm)
        tokens = jnp.minimum(prompt_selection.prompt_lengths, length).sum().astype(jnp.float32)
        metrics = {
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": gradient_norm,
            "skipped": (~finite).astype(jnp.float32),
            "tokens": tokens,
            "padding": 1.0 - tokens / (length * prompt_selection.prompt_lengths.shape[0]).astype(jnp.float32),
            "truncated": (prompt_selection.prompt_lengths > length).sum().astype(jnp.float32),
            "key_frames": (prompt_selection.frame_plan.is_keyframe & prompt_selection.frame_plan.slot_mask)
            .sum()
            .astype(jnp.float32)
            / num_rows,
        }
        return apply_gradients(state, gradients, optimizer, rate, finite=finite), metrics | objective_metrics

    return step


def compile_train_step(step: TrainStep, state: TrainState, options: dict[str, str] | None = None) -> TrainStep:
    """Jit a step from `make_step`; `state` is donated, and the new state has the same shardings.

    Args:
      step: from `make_step`.
      state: gives the shardings; arrays, or `jax.ShapeDtypeStruct`s with shardings.
      options: from `calce_jax.distributed.compiler_options`.
    """
    # Without out_shardings XLA chooses others for the new state, and the second step is compiled again.
    shardings = jax.tree.map(lambda a: a.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
