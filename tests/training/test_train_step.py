"""The compiled training step of the whole model, where its numbers are finite and where they are not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.distributed.sharding import make_mesh, param_shardings, put_batch
from calce_jax.inference.length_grouping import LengthGrouper
from calce_jax.input_pipeline.augment import sample_crop
from calce_jax.models import feature_codec
from calce_jax.training.state import create_train_state
from calce_jax.training.train_step import make_train_step
from tests.helpers import tiny_model
from tests.helpers.host_crops import crop_and_resize
from tests.helpers.tiny_model import BUCKETS, IMAGE_SIZE, OPTIMIZER, RATE, TRAIN_STEPS, compile_tiny_train_step

pytestmark = pytest.mark.slow

REFERENCE_STEPS = replace(TRAIN_STEPS, selection=replace(TRAIN_STEPS.selection, behaviour="reference"))
BATCH = tiny_model.make_batch((8, 5, 3, 6))


@pytest.fixture(scope="module")
def model():
    return tiny_model.make_model()


@pytest.fixture(scope="module")
def step(model):
    """One program for every state: state -> the state before and after it, and its metrics, as numpy arrays."""
    graph, trainable, frozen = model
    mesh = make_mesh("single")

    def place(tree):
        return jax.device_put(tree, param_shardings(tree, mesh))

    compiled = compile_tiny_train_step(graph, place(create_train_state(trainable, OPTIMIZER)))

    def run(state, frozen=frozen, batch=BATCH):
        before = jax.device_get(state)
        with jax.set_mesh(mesh):
            after, metrics = compiled(place(before), place(frozen), put_batch(batch, mesh), jax.random.key(3))
        assert compiled._cache_size() == 1
        return before, jax.device_get(after), jax.device_get(metrics)

    return run


def changed(before, after):
    """Return the names of what changed by as much as a bit."""
    after = named_leaves(after)
    return {name for name, leaf in named_leaves(before).items() if leaf.tobytes() != after[name].tobytes()}


def with_adapter(state, size):
    """Scale the adapter of T5's output; its second factor is zero, so the gradient of that grows and the loss stays."""
    first, second = "trainable/t5/lm_head/a", "trainable/t5/lm_head/b"
    leaves = named_leaves(state)
    return with_leaves(state, leaves | {first: leaves[first] * np.float32(size), second: 0 * leaves[second]})


def test_a_step_with_a_finite_loss_and_a_gradient_that_is_not_changes_the_step_counter_alone(model, step):
    _, state, metrics = step(with_adapter(create_train_state(model[1], OPTIMIZER), 1))
    assert metrics["skipped"] == 0
    assert np.any(named_leaves(state)["opt_state/acc_grads/t5_proj/kernel"])

    # At 1e30 the squares of gradients overflow.
    before, after, metrics = step(with_adapter(state, 1e30))
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["gradient_norm"])
    assert metrics["skipped"] == 1
    assert changed(before, after) == {"step"}
    assert (before.step, after.step) == (1, 2)

    # The next finite micro-step completes the optimizer's.
    before, after, metrics = step(with_adapter(after, 1e-30))
    assert metrics["skipped"] == 0
    assert metrics["learning_rate"] == pytest.approx(RATE(2))
    assert (after.opt_state.mini_step, after.opt_state.gradient_step) == (0, 1)
    assert "trainable/t5/lm_head/b" in changed(before, after)
    assert all(np.isfinite(leaf).all() for leaf in named_leaves(after).values())


def test_dropout_differs_from_step_to_step_and_not_from_run_to_run(model, step):
    state = create_train_state(model[1], OPTIMIZER)
    first, again, later = (float(step(replace(state, step=jnp.int32(number)))[2]["loss"]) for number in (0, 0, 1))
    assert first == again != later


def test_the_share_of_padding_is_told(model, step):
    metrics = step(create_train_state(model[1], OPTIMIZER))[2]
    assert 0 < metrics["padding"] < 1
    # The prompts' tokens fill the rest of 4 rows of one bucket.
    length = metrics["tokens"] / (4 * (1 - metrics["padding"]))
    assert float(length) == pytest.approx(BUCKETS[-1])


def test_filler_rows_do_not_count_in_the_mean_loss(model, step):
    state = create_train_state(model[1], OPTIMIZER)
    halves = np.array([[True, True, False, False], [False, False, True, True]])
    first, second = (float(step(state, batch=replace(BATCH, row_mask=half))[2]["loss"]) for half in halves)
    whole = float(step(state)[2]["loss"])
    np.testing.assert_allclose((first + second) / 2, whole, rtol=1e-5)  # float32 sums in another order


def test_a_step_whose_loss_is_not_finite_changes_the_step_counter_alone(model, step):
    frozen = with_leaves(model[2], {name: leaf * jnp.nan for name, leaf in named_leaves(model[2]).items()})
    before, after, metrics = step(create_train_state(model[1], OPTIMIZER), frozen)
    assert np.isnan(metrics["loss"])
    assert metrics["skipped"] == 1
    assert changed(before, after) == {"step"}


@pytest.mark.release
def test_a_step_on_crops_is_that_on_clips_that_the_host_cropped(model):
    """As the original crops: its bytes wrap, so a step that forgets the behaviour has other pixels."""
    step = jax.jit(make_train_step(model[0], REFERENCE_STEPS, OPTIMIZER, RATE))
    crops = [sample_crop(np.random.default_rng(row), IMAGE_SIZE, IMAGE_SIZE) for row in range(len(BATCH.frames))]
    clips = [
        crop_and_resize(clip, crop, IMAGE_SIZE, "reference") for clip, crop in zip(BATCH.frames, crops, strict=True)
    ]
    batches = replace(BATCH, crop=np.array(crops, np.int32)), replace(BATCH, frames=np.stack(clips)), BATCH
    state = create_train_state(model[1], OPTIMIZER)
    ours, expected, whole = (jax.device_get(step(state, model[2], batch, jax.random.key(3))[1]) for batch in batches)
    assert abs(whole["loss"] - expected["loss"]) > 1e-4
    np.testing.assert_allclose(ours["loss"], expected["loss"], rtol=1e-6)
    np.testing.assert_allclose(ours["gradient_norm"], expected["gradient_norm"], rtol=1e-3)
    assert ours["key_frames"] == expected["key_frames"]


class Cropped(Exception):
    """Ends a trace where frames are cropped."""


def test_the_step_and_the_feed_crop_as_the_run_behaves(model, monkeypatch):
    def stop(frames, crop, size, behaviour):
        raise Cropped(behaviour, frames.shape, crop.shape, size)

    monkeypatch.setattr(feature_codec, "crop_and_resize", stop)
    graph, trainable, frozen = model
    batch = replace(BATCH, crop=np.zeros((len(BATCH.frames), 4), np.int32))
    step, state = make_train_step(graph, REFERENCE_STEPS, OPTIMIZER, RATE), create_train_state(trainable, OPTIMIZER)
    feed = LengthGrouper(graph, REFERENCE_STEPS, make_mesh("single"))
    for run in (
        lambda: jax.eval_shape(step, state, frozen, batch, jax.random.key(3)),
        lambda: feed.encode_window(trainable, frozen, [batch]),
    ):
        with pytest.raises(Cropped) as stopped:
            run()
        assert stopped.value.args == ("reference", batch.frames.shape, batch.crop.shape, IMAGE_SIZE)
