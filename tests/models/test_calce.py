"""The whole model on made-up batches: a sample is itself in any company, and what is frozen stays so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.distributed.param_names import named_leaves
from calce_jax.inference.predict_step import make_encode_video, make_predict, make_predict_from_features
from calce_jax.models.calce import Calce, CalceConfig, answer_loss, count_params, param_label, shift_right, split_params
from tests.helpers.tiny_model import BUCKETS, STEPS, make_batch, make_model

B = 3
# float32 sums of other lengths.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def parts():
    return make_model()


@pytest.fixture(scope="module")
def batch():
    """Videos of 8, 5 and 3 frames."""
    return make_batch((8, 5, 3))


def only(batch, sample):
    return jax.tree.map(lambda array: array[sample : sample + 1], batch)


@partial(jax.jit, static_argnums=(0, 2, 3))
def _losses(graph, weights, stage, length, batch):
    model = nnx.merge(graph, *weights)
    seen = model.see(batch.frames)
    reading = model.read(seen, batch, STEPS[stage].selection)
    return model.loss(seen, batch, reading, length), reading.needed


def losses(parts, batch, stage, length=BUCKETS[-1]):
    """Return each sample's loss, and the tokens its prompt needs."""
    graph, *weights = parts
    return _losses(graph, weights, stage, length, batch)


@partial(jax.jit, static_argnames=("graph", "stage"))
def predicted(graph, trainable, frozen, batch, stage):
    return make_predict(graph, STEPS[stage])(trainable, frozen, batch)


@pytest.fixture(scope="module", params=[1, 2], ids="stage {}".format)
def stage(request):
    return request.param


def test_a_sample_has_the_same_loss_alone_and_in_any_bucket(parts, batch, stage):
    together, needed = losses(parts, batch, stage)
    assert needed.max() <= BUCKETS[-1]
    assert len(set(needed.tolist())) == B, "prompts of several lengths"
    assert np.isfinite(together).all()
    for sample in range(B):
        alone, its = losses(parts, only(batch, sample), stage)
        assert its[0] == needed[sample]
        np.testing.assert_allclose(alone[0], together[sample], **CLOSE)
    shorter, _ = losses(parts, batch, stage, int(needed.max()))
    np.testing.assert_allclose(shorter, together, **CLOSE)


def test_a_sample_gets_the_same_answers_alone(parts, batch, stage):
    together = predicted(*parts, batch, stage)
    np.testing.assert_array_equal(together.batch.example_index, batch.example_index)
    for sample in range(B):
        alone = predicted(*parts, only(batch, sample), stage)
        np.testing.assert_array_equal(alone.answers.tokens[0], together.answers.tokens[sample])
        np.testing.assert_allclose(alone.answers.score[0], together.answers.score[sample], **CLOSE)


def test_prompts_are_padded_at_the_far_right_alone(parts, batch, stage):
    model = nnx.merge(*parts)
    run = jax.jit(lambda batch: embedded(model, batch, stage))
    x, mask, needed = run(jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(mask, np.arange(BUCKETS[-1]) < np.asarray(needed)[:, None])
    assert not np.asarray(x)[~np.asarray(mask)].any()


def test_what_is_seen_may_be_computed_ahead_of_the_query(parts, batch, stage):
    graph, *weights = parts
    at_once = predicted(*parts, batch, stage)
    looked = jax.jit(make_encode_video(graph))(*weights, batch.frames)
    later = jax.jit(make_predict_from_features(graph, STEPS[stage]))(*weights, looked, batch)
    np.testing.assert_array_equal(later.answers.tokens, at_once.answers.tokens)
    np.testing.assert_allclose(later.answers.score, at_once.answers.score, **CLOSE)
    np.testing.assert_array_equal(
        later.prompt_selection.frame_plan.frame_index, at_once.prompt_selection.frame_plan.frame_index
    )


def embedded(model, batch, stage):
    seen = model.see(batch.frames)
    reading = model.read(seen, batch, STEPS[stage].selection)
    return *model.embed(seen, batch, reading, BUCKETS[-1]), reading.needed


def test_gradients_reach_what_is_trained_and_nothing_else_is_differentiated(parts, batch, stage):
    graph, trainable, frozen = parts

    def mean(trainable):
        return losses((graph, trainable, frozen), batch, stage)[0].mean()

    gradients = named_leaves(jax.jit(jax.grad(mean))(trainable))
    assert {name.split("/")[0] for name in gradients} == {"ln_vision", "query_proj", "t5_proj", "t5"}
    assert all(name.endswith(("/a", "/b")) for name in gradients if name.startswith("t5/"))
    assert not any(name.endswith(("/a", "/b")) for name in named_leaves(frozen))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_labels_of_parameters():
    assert param_label(("ln_vision", "scale")) == param_label(("t5", "lm_head", "b")) == "trainable"
    assert param_label(("t5", "lm_head", "base", "kernel")) == param_label(("vit", "patches", "bias")) == "frozen"


def test_the_full_model_has_the_papers_parameters():
    """The original keeps 622,650 more: the Q-Former's head that predicts words, which is never asked."""
    _, trainable, frozen = nnx.eval_shape(lambda: split_params(Calce(CalceConfig.full(), rngs=nnx.Rngs(0))))
    assert count_params(trainable) == 19_546_120
    assert count_params(trainable) + count_params(frozen) == 4_041_504_450 - 622_650


def test_the_loss_of_an_answer_is_the_mean_over_its_tokens():
    labels = jnp.array([[3, 1, 0], [2, 4, 1], [0, 0, 0]])
    np.testing.assert_array_equal(shift_right(labels), [[0, 3, 1], [0, 2, 4], [0, 0, 0]])
    logits = jnp.log(jnp.full((3, 3, 5), 0.1).at[0, 0, 3].set(0.6).at[0, 1, 1].set(0.6))
    expected = [-np.log(0.6), -np.log(0.2), 0.0]  # the second's tokens are all alike
    np.testing.assert_allclose(answer_loss(logits, labels), expected, rtol=1e-6)
