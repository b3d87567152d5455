"""Deviations of the whole model and of a whole run: the default, and the original's behaviour under "reference".

Deviations of a single function are tested with that function; docs/deviations.md lists all of them.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.config import OptimizerConfig, packaged_path, validate
from calce_jax.inference.predict_step import draw_noise_for_batch
from calce_jax.inference.prediction import StepConfig
from calce_jax.models.keyframes.reference_noise import draw_reference_noise
from calce_jax.models.selection import SelectionConfig
from calce_jax.text.prompt import max_answer_tokens
from calce_jax.text.tokenizers import load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import apply_gradients, create_train_state
from configs.calce import get_config
from tests.helpers import tiny_model
from tests.training.test_schedule import QVH1

pytestmark = pytest.mark.slow

BATCH = jax.tree.map(jnp.asarray, tiny_model.make_batch((8, 8, 8)))
FRAMES = tiny_model.FRAMES
BEHAVIOURS = ("default", "reference")


@pytest.fixture(scope="module")
def model():
    return nnx.merge(*tiny_model.make_model())


def selection(behaviour, stage=1, **options):
    return SelectionConfig(
        stage=stage, clusters=2, dilation=0, max_captions=2, min_similarity=-1.0, behaviour=behaviour, **options
    )


@pytest.fixture(scope="module")
def select(model):
    """Return `model.select` on the batch, compiled once for each selection."""

    @partial(jax.jit, static_argnames="selection")
    def run(features, key, noise, selection):
        return model.select(features, BATCH, selection, key=key, reference_noise=noise)

    return run


def frame_choice(prompt_selection):
    plan = prompt_selection.frame_plan
    return np.asarray(plan.is_keyframe).tolist(), np.asarray(plan.cluster).tolist()


def test_noise_decides_ties_under_reference_alone(select):
    # For two clusters the one neighbour that counts is the frame itself, so all frames are equally dense.
    features = jax.random.normal(jax.random.key(2), (3, FRAMES, 5, 16))
    first, second = (draw_reference_noise(jax.random.key(seed), BATCH.example_index, FRAMES) for seed in (0, 1))
    plain = frame_choice(select(features, None, None, selection("default")))
    assert frame_choice(select(features, None, first, selection("default"))) == plain
    noisy = [frame_choice(select(features, None, noise, selection("reference"))) for noise in (first, second)]
    assert noisy[0] != noisy[1]
    assert frame_choice(select(features, None, first, selection("reference"))) == noisy[0]


def test_frames_are_removed_at_random_under_reference_alone(select):
    features = jax.random.normal(jax.random.key(3), (3, FRAMES, 5, 16))
    noises = [draw_reference_noise(jax.random.key(seed), BATCH.example_index, FRAMES) for seed in range(4)]
    # Without density noise, so that the clusters are the same.
    noises = [dataclasses.replace(noise, density_noise=jnp.zeros_like(noise.density_noise)) for noise in noises]
    plans = {}
    for behaviour in BEHAVIOURS:
        options = selection(behaviour, stage=2, filter_dilation=FRAMES)
        plans[behaviour] = {
            str(np.asarray(select(features, None, noise, options).frame_plan.frame_index)) for noise in noises
        }
    assert len(plans["default"]) == 1
    assert len(plans["reference"]) > 1


def test_noise_of_a_row_does_not_depend_on_the_batch():
    batched = draw_reference_noise(jax.random.key(0), jnp.asarray([4, 7, -1]), FRAMES)
    alone = draw_reference_noise(jax.random.key(0), jnp.asarray([7]), FRAMES)
    np.testing.assert_array_equal(batched.removal_draws[1], alone.removal_draws[0])
    np.testing.assert_array_equal(batched.density_noise[1], alone.density_noise[0])
    assert not np.array_equal(batched.density_noise[0], batched.density_noise[1])


def test_evaluation_repeats_itself_and_draws_under_reference_alone():
    step = {b: StepConfig(selection(b), buckets=(96,)) for b in BEHAVIOURS}
    assert draw_noise_for_batch(step["default"], BATCH) is None
    first, again = (draw_noise_for_batch(step["reference"], BATCH) for _ in range(2))
    np.testing.assert_array_equal(first.density_noise, again.density_noise)
    assert not np.array_equal(
        first.density_noise, draw_noise_for_batch(step["reference"], BATCH, jax.random.key(5)).density_noise
    )


def test_the_frozen_q_former_drops_under_reference_alone(model, select):
    features = jnp.ones((3, FRAMES, 5, 16), jnp.float32)
    keys = jax.random.split(jax.random.key(0))
    similarity = {
        behaviour: [
            np.asarray(select(features, key, None, selection(behaviour)).caption_selection.similarity)
            for key in (None, *keys)
        ]
        for behaviour in BEHAVIOURS
    }
    np.testing.assert_array_equal(similarity["default"][0], similarity["default"][1])
    np.testing.assert_array_equal(similarity["default"][0], similarity["reference"][0])
    assert not np.allclose(similarity["reference"][1], similarity["reference"][2], atol=1e-4)

    # In training too: T5 and its adapters do not drop here, so a difference comes from the Q-Former.
    without_dropout = nnx.clone(model)
    for _, module in nnx.iter_modules(without_dropout.t5):
        if hasattr(module, "dropout_rate"):
            module.dropout_rate = 0.0
    without_dropout.t5.config = dataclasses.replace(without_dropout.t5.config, dropout_rate=0.0)
    prompt_selection = select(features, None, None, selection("default"))

    @partial(jax.jit, static_argnames="behaviour")
    def loss(key, behaviour):
        return without_dropout.loss(
            features, BATCH, prompt_selection, tiny_model.BUCKETS[-1], key=key, behaviour=behaviour
        )

    np.testing.assert_array_equal(loss(keys[0], "default"), loss(keys[1], "default"))
    assert not np.allclose(loss(keys[0], "reference"), loss(keys[1], "reference"), atol=1e-5)


def test_a_resumed_run_warms_up_again_under_reference_alone():
    third = 3 * QVH1["steps_per_epoch"]
    uninterrupted, resumed = (
        {b: learning_rate(third, **QVH1, behaviour=b, first_step=first * QVH1["steps_per_epoch"]) for b in BEHAVIOURS}
        for first in (0, 3)
    )
    assert resumed["default"] == uninterrupted["default"] == pytest.approx(uninterrupted["reference"], rel=1e-12)
    assert resumed["reference"] == 1e-8
    assert (
        learning_rate(third + 600, **QVH1, behaviour="reference", first_step=3 * QVH1["steps_per_epoch"])
        == resumed_peak()
    )


def resumed_peak():
    """Return the rate after the second warm-up, which is four times as fast: the cosine's value in that epoch."""
    return learning_rate(3 * QVH1["steps_per_epoch"], **QVH1)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_gradients_left_over_at_the_end_of_an_epoch_enter_the_next_ones_first_step(behaviour):
    """Both behaviours do as the original: dropping them would waste a batch, stepping early would take half a step."""
    optimizer = make_optimizer(OptimizerConfig(2, 0.9, 0.999, 1e-8, 0.0), behaviour)

    def params(value):
        return {"query_proj": {"kernel": jnp.full((1, 1), value, jnp.float32)}}

    state = create_train_state(params(0.0), optimizer)
    for gradient in (1.0, 2.0, 5.0):  # an epoch of three micro-steps
        state = apply_gradients(state, params(gradient), optimizer, jnp.float32(1))
    after_epoch = float(state.trainable["query_proj"]["kernel"][0, 0])
    state = apply_gradients(state, params(-5.0), optimizer, jnp.float32(1))
    # 5 and -5 cancel, so only the momentum of the first step moves the parameter.
    moment = float(state.opt_state.inner_opt_state[0].mu["query_proj"]["kernel"][0, 0])
    accumulated = 1.5 if behaviour == "default" else 3.0
    assert moment == pytest.approx(0.9 * 0.1 * accumulated, rel=1e-5)
    assert float(state.trainable["query_proj"]["kernel"][0, 0]) < after_epoch < 0


def test_answers_end_after_70_tokens_under_reference_alone():
    t5 = load_t5(packaged_path("calce_jax/assets/tiny/t5"))
    configs = {b: validate(get_config(f"qvh,stage=1,behaviour={b}")) for b in BEHAVIOURS}
    lengths = {b: max_answer_tokens(t5, 150.0, config.behaviour) for b, config in configs.items()}
    assert lengths["reference"] == 70
    assert lengths["default"] > 141, "tokens of the longest annotated answer"


def test_charades_chooses_its_checkpoint_on_the_test_split():
    """Charades-STA has no other split with answers; the original calls its test split "val"."""
    config = get_config("charades,stage=1")
    assert config.data.eval_split == "test"
    assert get_config("charades,stage=1,behaviour=reference").data.eval_split == "test"
    assert get_config("qvh,stage=1").data.eval_split == "val"
