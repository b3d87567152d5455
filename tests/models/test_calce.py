"""The whole model on random batches: results do not depend on the batch, and frozen weights get no gradient."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.batch import Batch
from calce_jax.distributed.param_names import named_leaves
from calce_jax.inference.predict_step import make_encode_video, make_predict, make_predict_from_features
from calce_jax.models.calce import Calce, answer_loss, normalise_queries, shift_right
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.structure import count_params, param_label, split_params
from calce_jax.models.t5 import T5
from tests.helpers.tiny_model import BUCKETS, STEPS, make_batch, make_model

pytestmark = pytest.mark.slow

B = 3
# float32 sums over other prompt lengths.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def model_state():
    return make_model()


@pytest.fixture(scope="module")
def batch():
    """Videos of 8, 5 and 3 frames."""
    return make_batch((8, 5, 3))


def among_others(batch, sample):
    """Return a batch with one of the samples, and others in place of the rest."""
    others = make_batch((4, 8, 6), seed=9)
    return jax.tree.map(lambda here, there: np.where(rows_of(here) == sample, here, there), batch, others)


def rows_of(array):
    return np.arange(B).reshape(-1, *(1,) * (array.ndim - 1))


@partial(jax.jit, static_argnums=(0, 2, 3))
def _losses(graph, weights, stage, length, batch):
    model = nnx.merge(graph, *weights)
    features = model.encode_frames(batch.frames)
    selection = model.select(features, batch, STEPS[stage].selection)
    return model.loss(features, batch, selection, length), selection.prompt_lengths


def losses(model_state, batch, stage, length=BUCKETS[-1]):
    """Return each sample's loss and the length of its prompt in tokens."""
    graph, *weights = model_state
    return _losses(graph, weights, stage, length, batch)


@partial(jax.jit, static_argnames=("graph", "stage"))
def predict(graph, trainable, frozen, batch, stage):
    return make_predict(graph, STEPS[stage])(trainable, frozen, batch)


@pytest.fixture(scope="module", params=[1, 2], ids="stage {}".format)
def stage(request):
    return request.param


# Stage 2 has all that stage 1 has, and a second look.
STAGE_1_LATER = pytest.mark.parametrize(
    "stage", [pytest.param(1, marks=pytest.mark.release), 2], ids="stage {}".format, indirect=True
)


@STAGE_1_LATER
def test_loss_does_not_depend_on_batch_or_bucket(model_state, batch, stage):
    batched, prompt_lengths = losses(model_state, batch, stage)
    assert prompt_lengths.max() <= BUCKETS[-1]
    assert len(set(prompt_lengths.tolist())) == B, "prompts of several lengths"
    assert np.isfinite(batched).all()
    for sample in range(B):
        elsewhere, length = losses(model_state, among_others(batch, sample), stage)
        assert length[sample] == prompt_lengths[sample]
        np.testing.assert_allclose(elsewhere[sample], batched[sample], **CLOSE)
    shorter, _ = losses(model_state, batch, stage, int(prompt_lengths.max()))
    np.testing.assert_allclose(shorter, batched, **CLOSE)


@STAGE_1_LATER
def test_answers_do_not_depend_on_the_batch(model_state, batch, stage):
    batched = predict(*model_state, batch, stage)
    np.testing.assert_array_equal(batched.batch.example_index, batch.example_index)
    for sample in range(B):
        elsewhere = predict(*model_state, among_others(batch, sample), stage)
        np.testing.assert_array_equal(elsewhere.answers.tokens[sample], batched.answers.tokens[sample])
        np.testing.assert_allclose(elsewhere.answers.score[sample], batched.answers.score[sample], **CLOSE)


@pytest.mark.release
def test_one_sample_alone_gets_the_loss_and_the_answers_that_it_gets_in_a_batch(model_state, batch, stage):
    one = jax.tree.map(lambda array: array[:1], batch)
    np.testing.assert_allclose(losses(model_state, one, stage)[0], losses(model_state, batch, stage)[0][:1], **CLOSE)
    alone, batched = (predict(*model_state, rows, stage).answers for rows in (one, batch))
    np.testing.assert_array_equal(alone.tokens, batched.tokens[:1])
    np.testing.assert_allclose(alone.score, batched.score[:1], **CLOSE)


def test_prompts_are_padded_on_the_right_only(model_state, batch, stage):
    model = nnx.merge(*model_state)
    run = jax.jit(lambda batch: embed(model, batch, stage))
    x, mask, prompt_lengths = run(jax.tree.map(jnp.asarray, batch))
    np.testing.assert_array_equal(mask, np.arange(BUCKETS[-1]) < np.asarray(prompt_lengths)[:, None])
    assert not np.asarray(x)[~np.asarray(mask)].any()


@pytest.mark.release
@STAGE_1_LATER
def test_predictions_from_encoded_video_equal_those_from_frames(model_state, batch, stage):
    graph, *weights = model_state
    at_once = predict(*model_state, batch, stage)
    features = jax.jit(make_encode_video(graph))(*weights, batch.frames)
    from_features = jax.jit(make_predict_from_features(graph, STEPS[stage]))(*weights, features, batch)
    np.testing.assert_array_equal(from_features.answers.tokens, at_once.answers.tokens)
    np.testing.assert_allclose(from_features.answers.score, at_once.answers.score, **CLOSE)
    np.testing.assert_array_equal(
        from_features.prompt_selection.frame_plan.frame_index, at_once.prompt_selection.frame_plan.frame_index
    )


def embed(model, batch, stage):
    features = model.encode_frames(batch.frames)
    selection = model.select(features, batch, STEPS[stage].selection)
    return *model.embed_prompt(features, batch, selection, BUCKETS[-1]), selection.prompt_lengths


@STAGE_1_LATER
def test_gradients_reach_all_trainable_parameters(model_state, batch, stage):
    graph, trainable, frozen = model_state

    def mean(trainable):
        return losses((graph, trainable, frozen), batch, stage)[0].mean()

    gradients = named_leaves(jax.jit(jax.grad(mean))(trainable))
    assert {name.split("/")[0] for name in gradients} == {"ln_vision", "query_proj", "t5_proj", "t5"}
    assert all(name.endswith(("/a", "/b")) for name in gradients if name.startswith("t5/"))
    assert not any(name.endswith(("/a", "/b")) for name in named_leaves(frozen))
    for name, gradient in gradients.items():
        assert np.isfinite(gradient).all(), name
        assert np.abs(gradient).max() > 0, name


def test_features_of_the_selection(model_state):
    """Stage 1: the mean of all tokens, the class token included, after `ln_vision`; stage 2: query tokens of norm 1."""
    model = nnx.merge(*model_state)
    tokens = jax.random.normal(jax.random.key(4), (1, 2, 5, 16)) + 3.0
    normed = np.asarray(model.ln_vision(tokens))
    assert not np.allclose(normed, tokens, atol=0.1)
    np.testing.assert_allclose(model.frame_means(tokens), normed.mean(axis=2), rtol=1e-5, atol=1e-6)
    queries = np.asarray(normalise_queries(jnp.asarray([[[[3.0, 4.0], [0.0, 0.0], [0.0, -2.0]]]])))
    np.testing.assert_allclose(queries, [[[0.6, 0.8, 0.0, 0.0, 0.0, -1.0]]], rtol=1e-6)


def test_encoder_and_decoder_drop_by_keys_of_their_own(model_state, batch, monkeypatch):
    keys = []
    for name in ("encode", "decode"):
        method = getattr(T5, name)

        def noting(self, *args, method=method, key=None, **options):
            keys.append(key)
            return method(self, *args, key=key, **options)

        monkeypatch.setattr(T5, name, noting)

    def loss(key):
        model, on_device = nnx.merge(*model_state), jax.tree.map(jnp.asarray, batch)
        features = model.encode_frames(on_device.frames)
        selection = model.select(features, on_device, STEPS[2].selection)
        return model.loss(features, on_device, selection, BUCKETS[-1], key=key), keys[0], keys[1]

    _, encoder_key, decoder_key = jax.jit(loss).eval_shape(jax.random.key(0))
    assert encoder_key.dtype == decoder_key.dtype == jax.random.key(0).dtype
    assert keys[0] is not keys[1]


def test_a_batch_of_zeros_has_the_shapes_and_dtypes_of_any_other(batch):
    zeros = Batch.zeros(
        B,
        frames=batch.times.shape[1],
        image_size=batch.frames.shape[2],
        captions=batch.caption_bert_tokens.shape[1],
        bert_tokens=batch.query_bert_tokens.shape[1],
        text_tokens=batch.tokens.shape[1],
        windows=batch.window_mask.shape[1],
        answer_tokens=batch.labels.shape[1],
    )
    for name, array in vars(zeros).items():
        if name in ("features", "caption_similarity", "crop"):
            assert array is None
            continue
        assert (array.shape, array.dtype) == (getattr(batch, name).shape, getattr(batch, name).dtype), name
        assert (array == (-1 if name in ("example_index", "caption_positions") else 0)).all(), name
    assert zeros.frames.nbytes > 0


def test_labels_of_parameters():
    assert param_label(("ln_vision", "scale")) == param_label(("t5", "lm_head", "b")) == "trainable"
    assert param_label(("t5", "lm_head", "base", "kernel")) == param_label(("vit", "patches", "bias")) == "frozen"


def test_the_full_model_has_the_papers_parameters():
    """The original has 622,650 more: the Q-Former's language head, which CALCE never uses."""
    _, trainable, frozen = nnx.eval_shape(lambda: split_params(Calce(CalceConfig.full(), rngs=nnx.Rngs(0))))
    assert count_params(trainable) == 19_546_120
    assert count_params(trainable) + count_params(frozen) == 4_041_504_450 - 622_650


def test_the_loss_of_an_answer_is_the_mean_over_its_tokens():
    labels = jnp.array([[3, 1, 0], [2, 4, 1], [0, 0, 0]])
    np.testing.assert_array_equal(shift_right(labels), [[0, 3, 1], [0, 2, 4], [0, 0, 0]])
    logits = jnp.log(jnp.full((3, 3, 5), 0.1).at[0, 0, 3].set(0.6).at[0, 1, 1].set(0.6))
    expected = [-np.log(0.6), -np.log(0.2), 0.0]  # the second sample's logits are uniform
    np.testing.assert_allclose(answer_loss(logits, labels), expected, rtol=1e-6)
