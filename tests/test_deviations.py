"""Deviations that concern the whole model and a whole run: the default, and the original's way under "reference".

Those of one function are tested with that function; docs/deviations.md lists all of them.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.config import OptimizerConfig, validate
from calce_jax.inference.predict_step import StepConfig, draw_noise_for_batch
from calce_jax.input_pipeline.dataset import Query
from calce_jax.models.calce import SelectionConfig
from calce_jax.models.keyframes.reference_noise import draw_reference_noise
from calce_jax.text.prompt import max_answer_tokens
from calce_jax.text.tokenizers import load_t5
from calce_jax.training.optimizer import make_optimizer
from calce_jax.training.schedule import learning_rate
from calce_jax.training.state import apply_gradients, create_train_state
from configs.calce import get_config
from data import tokenizers as small
from tests.helpers import tiny_model as minute
from tests.training.test_schedule import QVH1

BATCH = jax.tree.map(jnp.asarray, minute.make_batch((8, 8, 8)))
FRAMES = minute.FRAMES
BEHAVIOURS = ("default", "reference")


@pytest.fixture(scope="module")
def model():
    return nnx.merge(*minute.make_model())


def selection(behaviour, stage=1, **how):
    return SelectionConfig(
        stage=stage, clusters=2, dilation=0, max_captions=2, min_similarity=-1.0, behaviour=behaviour, **how
    )


@pytest.fixture(scope="module")
def read(model):
    """Read a batch, compiled once for each selection."""

    @partial(jax.jit, static_argnames="selection")
    def run(seen, key, chance, selection):
        return model.read(seen, BATCH, selection, key=key, chance=chance)

    return run


def frames_of(reading):
    return np.asarray(reading.plan.key).tolist(), np.asarray(reading.plan.cluster).tolist()


def test_noise_decides_ties_under_reference_alone(read):
    # For two clusters the one neighbour that counts is the frame itself, so all frames are equally dense.
    seen = jax.random.normal(jax.random.key(2), (3, FRAMES, 5, 16))
    one, other = (draw_reference_noise(jax.random.key(seed), BATCH.row, FRAMES) for seed in (0, 1))
    plain = frames_of(read(seen, None, None, selection("default")))
    assert frames_of(read(seen, None, one, selection("default"))) == plain
    noisy = [frames_of(read(seen, None, chance, selection("reference"))) for chance in (one, other)]
    assert noisy[0] != noisy[1]
    assert frames_of(read(seen, None, one, selection("reference"))) == noisy[0]


def test_frames_are_removed_at_random_under_reference_alone(read):
    seen = jax.random.normal(jax.random.key(3), (3, FRAMES, 5, 16))
    chances = [draw_reference_noise(jax.random.key(seed), BATCH.row, FRAMES) for seed in range(4)]
    # Without noise, so that the clusters are the same.
    chances = [dataclasses.replace(chance, noise=jnp.zeros_like(chance.density_noise)) for chance in chances]
    kept = {}
    for behaviour in BEHAVIOURS:
        how = selection(behaviour, stage=2, filter_dilation=FRAMES)
        kept[behaviour] = {str(np.asarray(read(seen, None, chance, how).plan.index)) for chance in chances}
    assert len(kept["default"]) == 1
    assert len(kept["reference"]) > 1


def test_a_row_meets_the_same_chance_in_any_batch():
    together = draw_reference_noise(jax.random.key(0), jnp.asarray([4, 7, -1]), FRAMES)
    alone = draw_reference_noise(jax.random.key(0), jnp.asarray([7]), FRAMES)
    np.testing.assert_array_equal(together.removal_draws[1], alone.removal_draws[0])
    np.testing.assert_array_equal(together.density_noise[1], alone.density_noise[0])
    assert not np.array_equal(together.density_noise[0], together.density_noise[1])


def test_evaluation_repeats_itself_and_draws_under_reference_alone():
    step = {b: StepConfig(selection(b), buckets=(96,)) for b in BEHAVIOURS}
    assert draw_noise_for_batch(step["default"], BATCH) is None
    first, again = (draw_noise_for_batch(step["reference"], BATCH) for _ in range(2))
    np.testing.assert_array_equal(first.density_noise, again.density_noise)
    assert not np.array_equal(
        first.density_noise, draw_noise_for_batch(step["reference"], BATCH, jax.random.key(5)).density_noise
    )


def test_the_frozen_q_former_drops_under_reference_alone(model, read):
    seen = jnp.ones((3, FRAMES, 5, 16), jnp.float32)
    keys = jax.random.split(jax.random.key(0))
    likeness = {
        behaviour: [np.asarray(read(seen, key, None, selection(behaviour)).choice.similarity) for key in (None, *keys)]
        for behaviour in BEHAVIOURS
    }
    np.testing.assert_array_equal(likeness["default"][0], likeness["default"][1])
    np.testing.assert_array_equal(likeness["default"][0], likeness["reference"][0])
    assert not np.allclose(likeness["reference"][1], likeness["reference"][2], atol=1e-4)

    # In training, too: without dropout in T5 and its adapters nothing is left that could.
    still = nnx.clone(model)
    for _, module in nnx.iter_modules(still.t5):
        if hasattr(module, "drop"):
            module.drop = 0.0
    still.t5.config = dataclasses.replace(still.t5.config, drop=0.0)
    reading = read(seen, None, None, selection("default"))

    @partial(jax.jit, static_argnames="behaviour")
    def loss(key, behaviour):
        return still.loss(seen, BATCH, reading, minute.BUCKETS[-1], key=key, behaviour=behaviour)

    np.testing.assert_array_equal(loss(keys[0], "default"), loss(keys[1], "default"))
    assert not np.allclose(loss(keys[0], "reference"), loss(keys[1], "reference"), atol=1e-5)


def test_a_resumed_run_warms_up_again_under_reference_alone():
    third = 3 * QVH1["steps_per_epoch"]
    whole, resumed = (
        {b: learning_rate(third, **QVH1, behaviour=b, first_epoch=first) for b in BEHAVIOURS} for first in (0, 3)
    )
    assert resumed["default"] == whole["default"] == pytest.approx(whole["reference"], rel=1e-12)
    assert resumed["reference"] == 1e-8
    assert learning_rate(third + 600, **QVH1, behaviour="reference", first_epoch=3) == resumed_peak()


def resumed_peak():
    """The rate once the second warm-up, four times as fast, is over: the cosine's of that epoch."""
    return learning_rate(3 * QVH1["steps_per_epoch"], **QVH1)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
def test_gradients_left_over_at_the_end_of_an_epoch_enter_the_next_ones_first_step(behaviour):
    """Kept as the original has it under both: dropping them would waste a batch, stepping would be half a step."""
    optimizer = make_optimizer(OptimizerConfig(2, 0.9, 0.999, 1e-8, 0.0), behaviour)

    def of(value):
        return {"query_proj": {"kernel": jnp.full((1, 1), value, jnp.float32)}}

    state = create_train_state(of(0.0), optimizer)
    for gradient in (1.0, 2.0, 5.0):  # an epoch of three micro-steps
        state = apply_gradients(state, of(gradient), optimizer, jnp.float32(1))
    after_epoch = float(state.trainable["query_proj"]["kernel"][0, 0])
    state = apply_gradients(state, of(-5.0), optimizer, jnp.float32(1))
    # 5 and -5 cancel, so the step goes on as the momentum of the first one has it.
    moment = float(state.opt_state.inner_opt_state[0].mu["query_proj"]["kernel"][0, 0])
    gathered = 1.5 if behaviour == "default" else 3.0
    assert moment == pytest.approx(0.9 * 0.1 * gathered, rel=1e-5)
    assert float(state.trainable["query_proj"]["kernel"][0, 0]) < after_epoch < 0


def test_answers_end_after_70_tokens_under_reference_alone():
    t5 = load_t5(f"{small.__path__[0]}/tiny_t5")
    queries = [
        Query(qid, "v", 0, "a red circle", (), duration, np.zeros((0, 2)), None, None)
        for qid, duration in enumerate((150.0, 30.0))
    ]
    configs = {b: validate(get_config(f"qvh,stage=1,behaviour={b}")) for b in BEHAVIOURS}
    lengths = {b: max_answer_tokens(config, queries, t5) for b, config in configs.items()}
    assert lengths["reference"] == 70
    assert lengths["default"] > 141, "the longest annotated answer"


def test_charades_chooses_its_checkpoint_on_the_test_split_unless_told_otherwise():
    """There is no other split with answers; the original calls the test split "val"."""
    config = get_config("charades,stage=1")
    assert config.data.eval_split == "test"
    assert get_config("charades,stage=1,behaviour=reference").data.eval_split == "test"
    assert get_config("qvh,stage=1").data.eval_split == "val"
