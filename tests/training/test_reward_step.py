"""The step of training by rewards, with answers that a test chooses in place of sampled ones."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.config import RewardConfig
from calce_jax.distributed.param_names import named_leaves
from calce_jax.distributed.sharding import build_mesh, make_mesh, param_shardings, put_batch
from calce_jax.models.answer_parsing import piece_characters
from calce_jax.models.calce import shift_right
from calce_jax.models.feature_codec import load_or_encode
from calce_jax.training import reward_step
from calce_jax.training.reward_step import make_reward_step
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import compile_train_step
from tests.helpers import tiny_model
from tests.helpers.tiny_model import BUCKETS, OPTIMIZER, RATE, TRAIN_STEPS, VOCAB

pytestmark = pytest.mark.slow

ANSWER_TOKENS = 8
# Ids 2 to 9 are answers, and parts of answers; the second is the first one, written in another way.
PIECES = ("<pad>", "</s>", "[[0, 4]]", " [[0, 4]]", "[[0, 2]]", "[]", "[[1, 3], [4, 5]]", "[[1, 3]", ", [4, 5]]", "x")
TRUTH = [[2, 1], [4, 1], [], [6, 1]]
# For each row the answers of its group, which a test has in place of samples, and their rewards.
SAMPLES = [
    [[4, 1], [9, 1], [3, 1]],
    [[4, 1], [4, 1], [4, 1]],
    [[5, 1], [2, 1], [9] * ANSWER_TOKENS],
    [[7, 8, 1], [5, 1], [4, 1]],
]
REWARDS = np.array([[0.5, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1 / 6]])
HAS_TRUTH = np.array([True, True, False, True])  # row 2 has no labels
BETTER, WORSE = 2, 1  # of row 0
ALL_TERMS = RewardConfig(rollouts=3, temperature=0.7, kl=0.3, cross_entropy=0.2)
REWARDS_ALONE = RewardConfig(rollouts=3, temperature=1.0, kl=0.0, cross_entropy=0.0)
CHARACTERS = piece_characters(PIECES, VOCAB)


def padded(answers):
    """Return answers as an array with a last axis of `ANSWER_TOKENS`."""
    return np.array([answer + [0] * (ANSWER_TOKENS - len(answer)) for answer in answers], np.int32)


BATCH = replace(tiny_model.make_batch((8, 5, 3, 6)), labels=padded(TRUTH))
CHOSEN = np.stack([padded(answers) for answers in SAMPLES])


@pytest.fixture(scope="module")
def model():
    graph, trainable, frozen = tiny_model.make_model()
    rng = np.random.default_rng(5)
    reference = jax.tree.map(lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(np.float32), trainable)
    return graph, trainable, frozen, reference


@pytest.fixture(scope="module")
def step(model):
    """Return a function that takes a step with chosen answers; one program for each config."""
    graph, trainable, frozen, reference = model

    @cache
    def compiled(reward):
        return jax.jit(make_reward_step(graph, TRAIN_STEPS, OPTIMIZER, RATE, reward=reward, characters=CHARACTERS))

    def run(reward, state=None, batch=BATCH):
        state = create_train_state(trainable, OPTIMIZER) if state is None else state
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reward_step, "sample_answers", lambda *_, **options: jnp.asarray(CHOSEN))
            weights = reference if reward.kl else None
            return jax.device_get(compiled(reward)(state, frozen, batch, jax.random.key(3), weights))

    return run


@pytest.fixture(scope="module")
def independent(model):
    """Return a function of trainables: the loss of `ALL_TERMS`, log-probabilities and KL of answers.

    `with_gradient` adds the gradient of the loss. One answer after the other, each with keys and values of its own;
    rewards are the table above.
    """
    graph, _, frozen, reference = model
    rewards = np.concatenate([REWARDS, np.ones((4, 1))], axis=1)
    advantages = rewards - rewards.mean(axis=1, keepdims=True)
    group = np.concatenate([CHOSEN, BATCH.labels[:, None]], axis=1)

    def log_probabilities(trainable, temperature, inputs):
        """Return those of every token of every answer (B, R, A)."""
        model = nnx.merge(graph, trainable, frozen)
        x, mask = model.embed_prompt(*inputs, BUCKETS[-1])
        memory = model.t5.encode(x, mask)

        def of_answers(answers):
            logits = model.t5.decode(shift_right(answers), memory, mask) / temperature
            probability = jax.nn.softmax(logits, axis=-1)
            return jnp.log((probability * jax.nn.one_hot(answers, VOCAB)).sum(axis=-1))

        return jax.lax.map(of_answers, jnp.asarray(group.swapaxes(0, 1))).swapaxes(0, 1)

    def loss(trainable, inputs):
        drawn, cold, old = (
            log_probabilities(weights, temperature, inputs)
            for weights, temperature in ((trainable, 0.7), (trainable, 1.0), (reference, 0.7))
        )
        means, kls, total = {}, {}, 0.0
        for row in np.flatnonzero(HAS_TRUTH):
            for place in range(4):
                length = np.count_nonzero(group[row, place])
                tokens = slice(0, length)
                means[row, place] = drawn[row, place, tokens].mean()
                total -= advantages[row, place] * means[row, place] / 4
                ratio = old[row, place, tokens] - drawn[row, place, tokens]
                kls[row, place] = (jnp.exp(ratio) - 1 - ratio).mean()
                if place < 3:
                    total += 0.3 * kls[row, place] / 3
                else:
                    total -= 0.2 * cold[row, place, tokens].mean()
        return total / int(HAS_TRUTH.sum()), (means, kls)

    @partial(jax.jit, static_argnames="with_gradient")
    def compute(trainable, batch, with_gradient):
        model = nnx.merge(graph, trainable, frozen)
        features = load_or_encode(model, batch, "default")
        inputs = features, batch, model.select(features, batch, TRAIN_STEPS.selection)
        return (jax.value_and_grad(loss, has_aux=True) if with_gradient else loss)(trainable, inputs)

    return lambda trainable, with_gradient=False: jax.device_get(compute(trainable, BATCH, with_gradient))


@pytest.fixture(scope="module")
def first_step(step):
    return step(ALL_TERMS)


@pytest.mark.release
def test_loss_and_gradient_are_those_of_a_plain_computation(model, first_step, independent):
    state, metrics = first_step
    (loss, _), gradients = independent(model[1], with_gradient=True)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    # After the first of two micro-steps the optimizer holds the gradient. float32 sums in another order.
    accumulated, expected = named_leaves(state.opt_state.acc_grads), named_leaves(gradients)
    scale = max(np.abs(leaf).max() for leaf in expected.values())
    assert min(np.abs(leaf).max() for leaf in expected.values()) > 1e-4 * scale
    for name, leaf in expected.items():
        np.testing.assert_allclose(accumulated[name], leaf, rtol=1e-3, atol=1e-5 * scale, err_msg=name)


def test_metrics_are_means_over_the_rows_with_a_truth(model, first_step, independent):
    _, metrics = first_step
    _, (_, kls) = independent(model[1])
    rows = REWARDS[HAS_TRUTH]
    np.testing.assert_allclose(metrics["reward"], rows.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["reward_spread"], rows.std(axis=1).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["equal"], 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["malformed"], 1 / 9, rtol=1e-6)  # "x"
    np.testing.assert_allclose(metrics["answer_length"], (2 + 2 + 7 / 3) / 3, rtol=1e-6)
    kl = np.mean([value for (_, place), value in kls.items() if place < 3])
    assert kl > 1e-4
    np.testing.assert_allclose(metrics["kl"], kl, rtol=1e-3)  # a difference of exponentials near 1
    assert metrics["skipped"] == 0


def test_a_group_of_equal_rewards_has_no_gradient(step):
    state, metrics = step(REWARDS_ALONE, batch=replace(BATCH, row_mask=np.arange(4) == 1))
    assert metrics["equal"] == metrics["reward"] == 1
    assert metrics["gradient_norm"] == metrics["kl"] == 0
    assert not any(leaf.any() for leaf in named_leaves(state.opt_state.acc_grads).values())


def test_rows_without_a_truth_have_no_gradient(step):
    state, metrics = step(REWARDS_ALONE, batch=replace(BATCH, row_mask=np.arange(4) == 2))
    assert metrics["gradient_norm"] == metrics["reward"] == metrics["equal"] == 0
    assert not any(leaf.any() for leaf in named_leaves(state.opt_state.acc_grads).values())


def test_steps_raise_the_probability_of_the_better_answer(model, step, independent):
    _, (before, _) = independent(model[1])
    state = None
    for _ in range(2):  # two micro-steps are one of the optimizer's
        state, _ = step(REWARDS_ALONE, state)
    _, (after, _) = independent(state.trainable)
    assert after[0, BETTER] > before[0, BETTER]
    assert after[0, WORSE] < before[0, WORSE]


@pytest.mark.release
def test_four_devices_sample_and_learn_as_one_does(model):
    """Answers are the same tokens; the gradient is a float32 sum over rows in another order."""
    graph, trainable, frozen, reference = model
    results = []
    for mesh in (make_mesh("single"), build_mesh((4, 1, 1), jax.devices())):

        def place(tree, mesh=mesh):
            return jax.device_put(jax.device_get(tree), param_shardings(tree, mesh))

        state = place(create_train_state(trainable, OPTIMIZER))
        step = compile_train_step(
            make_reward_step(graph, TRAIN_STEPS, OPTIMIZER, RATE, reward=ALL_TERMS, characters=CHARACTERS), state
        )
        with jax.set_mesh(mesh):
            outputs = step(state, place(frozen), put_batch(BATCH, mesh), jax.random.key(3), place(reference))
            results.append(jax.device_get(outputs))
    (one, one_metrics), (four, four_metrics) = results
    assert one_metrics["answer_length"] == four_metrics["answer_length"] > 1
    for name, value in one_metrics.items():
        np.testing.assert_allclose(four_metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    there = named_leaves(four)
    for name, leaf in named_leaves(one).items():
        np.testing.assert_allclose(there[name], leaf, rtol=1e-4, atol=1e-5, err_msg=name)
