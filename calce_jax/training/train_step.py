"""The compiled training step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from calce_jax.batch import Batch
from calce_jax.inference.predict_step import StepConfig, draw_noise_for_batch, switch_bucket
from calce_jax.models.calce import Calce
from calce_jax.models.feature_codec import load_or_encode
from calce_jax.models.layers import KeyStream
from calce_jax.training.state import TrainState, apply_gradients, is_finite


def make_train_step(
    graph: Any,
    config: StepConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: Callable[[Int[Array, ""]], Float[Array, ""]],
) -> Callable[[TrainState, nnx.State, Batch, PRNGKeyArray], tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Build `step(state, frozen, batch, key) -> (state, metrics)`, to be compiled by `compile_train_step`.

    Args:
      graph: the model's structure, from `calce_jax.models.calce.split_params`.
      config: buckets, selection, remat.
      optimizer: from `calce_jax.training.optimizer.make_optimizer`.
      learning_rate: micro-step (int32 scalar) -> rate (float32 scalar).

    Returns:
      The function. Its metrics are float32 scalars: loss, learning_rate, gradient_norm, skipped (1 where loss or
      gradient_norm is not finite; such a step is not applied, see `apply_gradients`), tokens (of all prompts), padding
      (share of prompt positions without a token), truncated (prompts longer than the last bucket), key_frames (mean per
      row).
    """

    def step(
        state: TrainState, frozen: nnx.State, batch: Batch, key: PRNGKeyArray
    ) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
        keys = KeyStream(jax.random.fold_in(key, state.step))
        model: Calce = nnx.merge(graph, state.trainable, frozen)
        vision_features = load_or_encode(model, batch, config.behaviour)
        drop_key, loss_key = keys(), keys()
        prompt_selection = model.select(
            vision_features,
            batch,
            config.selection,
            key=drop_key,
            reference_noise=draw_noise_for_batch(config, batch, keys()),
        )
        num_rows = jnp.maximum(batch.row_mask.sum(), 1).astype(jnp.float32)

        def run(length: int) -> tuple[Array, nnx.State]:
            def mean_loss(trainable: nnx.State) -> Float[Array, ""]:
                model: Calce = nnx.merge(graph, trainable, frozen)
                losses = model.loss(
                    vision_features,
                    batch,
                    prompt_selection,
                    length,
                    key=loss_key,
                    remat=config.remat,
                    behaviour=config.behaviour,
                )
                return jnp.where(batch.row_mask, losses, 0.0).sum() / num_rows

            return jax.value_and_grad(mean_loss)(state.trainable)

        # The gradient is taken inside the switch: taken outside, every bucket's residuals would be kept.
        (loss, gradients), length = switch_bucket(config.buckets, prompt_selection.prompt_lengths, run)
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
        return apply_gradients(state, gradients, optimizer, rate, finite=finite), metrics

    return step


def compile_train_step(
    step: Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]],
    state: TrainState,
    options: dict[str, str] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Jit a step from `make_train_step`; `state` is donated, and the new state has the same shardings.

    Args:
      step: from `make_train_step`.
      state: gives the shardings; arrays, or `jax.ShapeDtypeStruct`s with shardings.
      options: from `calce_jax.distributed.compiler_options`.
    """
    # Without out_shardings XLA chooses others for the new state, and the second step is compiled again.
    shardings = jax.tree.map(lambda a: a.sharding, state)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None), compiler_options=options)
