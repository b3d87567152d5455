"""The objective of training by rewards: answers are sampled, and the better ones of a query are made more probable.

As group relative policy optimisation (Shao et al. 2024, DeepSeekMath) with one update for each draw, so without a
ratio of old and new probabilities, and without the division by the spread of a group (Liu et al. 2025, Dr. GRPO). The
true answer, whose reward is 1, is one more answer of every group.

There is no dropout: the answers are drawn from the very distribution whose gradient is taken. A prompt is encoded once;
its cross-attention keys and values serve all answers of the group.

Dimensions: B batch, K sampled answers, R = K + 1 answers of a group (the true one last), A answer length, L prompt
length, D width, V vocabulary.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Int32

from calce_jax.config import RematPolicy, RewardConfig
from calce_jax.distributed.param_names import Params
from calce_jax.inference.prediction import StepConfig
from calce_jax.models.answer_parsing import AnswerWindows, parse_answers
from calce_jax.models.calce import Calce, answer_loss, shift_right, token_log_probabilities
from calce_jax.models.sampling import sample_answers
from calce_jax.training.rewards import answer_rewards, group_advantages
from calce_jax.training.train_step import LearningRate, ObjectiveInputs, TrainStep, make_step

# A window takes at least so many tokens; an answer of more windows than they allow is malformed.
MIN_WINDOW_TOKENS = 4
# Seconds by which a true window may end after the video, as written: rounded up to a whole second, then to the nearest
# number that is one token of Flan-T5, at most two seconds away.
END_TOLERANCE = 3.0


def make_reward_step(
    graph: Any,
    config: StepConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    learning_rate: LearningRate,
    *,
    reward: RewardConfig,
    characters: Int32[np.ndarray, "V C"],
) -> TrainStep:
    """Build the step of training by rewards, see `calce_jax.training.train_step.make_step`.

    Rows whose labels cannot be read as windows have no part in the loss and in the metrics.

    Args:
      graph, config, optimizer, learning_rate: as for `make_step`.
      reward: number and temperature of the sampled answers, weights of the terms of the loss.
      characters: from `calce_jax.models.answer_parsing.piece_characters`.

    Returns:
      The function. `reference` are the trainables that the KL divergence is to; None where its weight is 0. More
      metrics, means over rows: reward (of sampled answers), reward_spread (their standard deviation), equal (share of
      rows all of whose answers, the true one too, have one reward: no gradient), malformed (share of sampled answers
      that cannot be read), kl (nats a token, estimated; 0 where its weight is), answer_length (tokens, the end token
      included).
    """

    def loss(
        trainable: Params, inputs: ObjectiveInputs, length: int
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        batch = inputs.batch
        model, memory, mask = _encode(graph, trainable, inputs, length, config.remat)
        sampler: Calce = nnx.merge(graph, jax.lax.stop_gradient(trainable), inputs.frozen)
        assert inputs.key is not None
        samples = sample_answers(
            sampler.t5,
            jax.lax.stop_gradient(memory),
            mask,
            inputs.key,
            num_answers=reward.rollouts,
            max_length=batch.labels.shape[1],
            temperature=reward.temperature,
        )
        answers = jnp.concatenate([jnp.moveaxis(samples, 1, 0), batch.labels[None]])
        windows = parse_group(answers, characters, batch.duration)
        true_windows = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[-1:], leaf.shape), windows)
        rewards = jax.vmap(answer_rewards)(windows, true_windows)
        advantages, is_equal = group_advantages(rewards)

        logits = decode_group(model, answers, memory, mask, config.remat)
        token_mask = answers != 0
        log_probabilities = token_log_probabilities(logits / reward.temperature, answers)
        losses = -(advantages * _token_mean(log_probabilities, token_mask)).mean(axis=0)
        losses += reward.cross_entropy * answer_loss(logits[-1], batch.labels)
        kl = jnp.zeros_like(losses)
        if reward.kl:
            reference, memory, mask = _encode(graph, inputs.reference, inputs, length, config.remat)
            reference_logits = decode_group(reference, answers[:-1], memory, mask, config.remat)
            kl = estimate_kl(
                log_probabilities[:-1],
                token_log_probabilities(reference_logits / reward.temperature, answers[:-1]),
                token_mask[:-1],
            ).mean(axis=0)
            losses += reward.kl * kl

        has_truth = batch.row_mask & windows.well_formed[-1]

        def row_mean(values: Float[Array, " B"]) -> Float[Array, ""]:
            return jnp.where(has_truth, values, 0.0).sum() / jnp.maximum(has_truth.sum(), 1).astype(jnp.float32)

        metrics = {
            "reward": row_mean(rewards[:-1].mean(axis=0)),
            "reward_spread": row_mean(rewards[:-1].std(axis=0)),
            "equal": row_mean(is_equal.astype(jnp.float32)),
            "malformed": row_mean((~windows.well_formed[:-1]).astype(jnp.float32).mean(axis=0)),
            "kl": row_mean(kl),
            "answer_length": row_mean(token_mask[:-1].sum(axis=2).astype(jnp.float32).mean(axis=0)),
        }
        return row_mean(losses), jax.lax.stop_gradient(metrics)

    return make_step(graph, config, optimizer, learning_rate, loss)


def parse_group(
    answers: Int[Array, "R B A"], characters: Int32[np.ndarray, "V C"], duration: Float[Array, " B"]
) -> AnswerWindows:
    """Return the windows of the answers of each group, with leading axes R and B.

    Args:
      answers: tokens.
      characters: from `calce_jax.models.answer_parsing.piece_characters`.
      duration: of each row's video, seconds.
    """
    max_windows = max(answers.shape[2] // MIN_WINDOW_TOKENS, 1)
    latest_end = jnp.ceil(duration) + END_TOLERANCE
    return jax.vmap(lambda tokens: parse_answers(tokens, characters, latest_end, max_windows))(answers)


def decode_group(
    model: Calce,
    answers: Int[Array, "R B A"],
    memory: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    remat: RematPolicy,
) -> Float[Array, "R B A V"]:
    """Return the float32 logits of every token of several answers to each prompt."""

    def decode(tokens: Int[Array, "B A"]) -> Float[Array, "B A V"]:
        return model.t5.decode(shift_right(tokens), memory, mask, remat=remat)

    # What does not depend on the answer, keys and values of the prompt, is computed once.
    return jax.vmap(decode)(answers).astype(jnp.float32)


def estimate_kl(
    log_probability: Float[Array, "K B A"], reference: Float[Array, "K B A"], mask: Bool[Array, "K B A"]
) -> Float[Array, "K B"]:
    """Estimate the KL divergence from the reference, in nats a token, from tokens that were sampled.

    r - 1 - log r, with r the reference's probability of a token over the model's: unbiased, and never negative
    (Schulman 2020, "Approximating KL divergence", k3).
    """
    log_ratio = jnp.where(mask, reference - log_probability, 0.0)
    return _token_mean(jnp.exp(log_ratio) - 1.0 - log_ratio, mask)


def _encode(
    graph: Any, trainable: Params | None, inputs: ObjectiveInputs, length: int, remat: RematPolicy
) -> tuple[Calce, Float[Array, "B L D"], Bool[Array, "B L"]]:
    """Return the model with these trainables, and its encoding of the prompts, without dropout."""
    model: Calce = nnx.merge(graph, trainable, inputs.frozen)
    x, mask = model.embed_prompt(inputs.vision_features, inputs.batch, inputs.prompt_selection, length, remat=remat)
    return model, model.t5.encode(x, mask, remat=remat), mask


def _token_mean(values: Float[Array, "*R A"], mask: Bool[Array, "*R A"]) -> Float[Array, "*R"]:
    """Return the mean over the tokens of each answer."""
    return jnp.where(mask, values, 0.0).sum(axis=-1) / jnp.maximum(mask.sum(axis=-1), 1).astype(jnp.float32)
