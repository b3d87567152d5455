"""The whole model on made-up batches: a sample is itself in any company, and what is frozen stays so."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.batch import SPANS_BESIDE_FRAMES_AND_CAPTIONS, Batch
from calce_jax.models.calce import Calce, CalceConfig, Selection, answer_loss, count, label, shifted, split
from calce_jax.models.lora import LoraLinear
from calce_jax.models.qformer import QFormerConfig
from calce_jax.models.t5 import T5Config
from calce_jax.models.vit import VitConfig
from calce_jax.paths import named_leaves
from calce_jax.step import StepConfig, make_predict

B, T, C, WORDS, WINDOWS, ANSWER, VOCAB = 3, 8, 3, 5, 2, 6, 40
SIDE, BUCKETS = 28, (40, 96)
STEPS = {
    stage: StepConfig(
        Selection(stage=stage, clusters=2, dilation=2 - stage, captions=2, similarity=0.0),
        BUCKETS,
        beams=2,
        answer_length=ANSWER,
    )
    for stage in (1, 2)
}
# float32 sums of other lengths.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def parts():
    """Structure, trainables and frozen weights of a minute model whose adapters do something."""
    config = CalceConfig(
        VitConfig(SIDE, 14, width=16, depth=2, heads=2, mlp_width=24),
        QFormerConfig(16, depth=2, heads=2, ffn_width=24, queries=4, image_width=16, vocab=VOCAB, positions=16),
        T5Config(16, heads=2, head_width=8, mlp_width=24, encoder_depth=2, decoder_depth=2, vocab=VOCAB),
        CalceConfig.full().lora,
        compressed=1,
    )

    @nnx.jit
    def make():
        model = Calce(config, rngs=nnx.Rngs(0))
        for number, (_, module) in enumerate(nnx.iter_modules(model)):
            if isinstance(module, LoraLinear):
                module.b[...] = 0.1 * jax.random.normal(jax.random.key(number), module.b.shape)
        return model

    return split(make(), "float32")


@pytest.fixture(scope="module")
def batch():
    """Videos of 8, 5 and 3 frames, with texts and answers of several lengths."""
    rng = np.random.default_rng(1)
    present = np.arange(T) < np.array([[8], [5], [3]])
    length = rng.integers(1, 4, (B, T + C + SPANS_BESIDE_FRAMES_AND_CAPTIONS)).astype(np.int32)
    length[:, :T] *= present
    length[1, T + 1 + C - 1] = 0  # one caption fewer
    start = np.cumsum(length, axis=1, dtype=np.int32) - length
    caption_words = rng.integers(1, VOCAB, (B, C, WORDS)).astype(np.int32)
    caption_words[1, C - 1] = 0
    labels = rng.integers(2, VOCAB, (B, ANSWER)).astype(np.int32)
    return Batch(
        frames=rng.integers(0, 256, (B, T, SIDE, SIDE, 3), np.uint8) * present[:, :, None, None, None].astype(np.uint8),
        present=present,
        times=np.arange(T, dtype=np.float32) * present,
        duration=present.sum(axis=1).astype(np.float32),
        tokens=rng.integers(3, VOCAB, (B, int(length.sum(axis=1).max()))).astype(np.int32),
        spans=np.stack([start, length], axis=-1),
        query_words=rng.integers(1, VOCAB, (B, WORDS)).astype(np.int32),
        caption_words=caption_words,
        talk=np.array([False, False, True]),
        spoken=np.tile(np.arange(T) == 1, (B, 1)),
        windows=np.array([[[1, 4], [6, 7]], [[0, 2], [0, 0]], [[0, 3], [0, 0]]], np.float32),
        window_valid=np.array([[True, True], [True, False], [True, False]]),
        labels=np.where(np.arange(ANSWER) < np.array([[6], [4], [2]]), labels, 0).astype(np.int32),
        valid=np.ones(B, bool),
        row=np.arange(B, dtype=np.int32),
        notes=np.zeros(B, np.int32),
    )


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
    np.testing.assert_array_equal(together.row, batch.row)
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
    assert label(("ln_vision", "scale")) == label(("t5", "lm_head", "b")) == "trainable"
    assert label(("t5", "lm_head", "base", "kernel")) == label(("vit", "patches", "bias")) == "frozen"


def test_the_full_model_has_the_papers_parameters():
    """The original keeps 622,650 more: the Q-Former's head that predicts words, which is never asked."""
    _, trainable, frozen = nnx.eval_shape(lambda: split(Calce(CalceConfig.full(), rngs=nnx.Rngs(0))))
    assert count(trainable) == 19_546_120
    assert count(trainable) + count(frozen) == 4_041_504_450 - 622_650


def test_the_loss_of_an_answer_is_the_mean_over_its_tokens():
    labels = jnp.array([[3, 1, 0], [2, 4, 1], [0, 0, 0]])
    np.testing.assert_array_equal(shifted(labels), [[0, 3, 1], [0, 2, 4], [0, 0, 0]])
    logits = jnp.log(jnp.full((3, 3, 5), 0.1).at[0, 0, 3].set(0.6).at[0, 1, 1].set(0.6))
    expected = [-np.log(0.6), -np.log(0.2), 0.0]  # the second's tokens are all alike
    np.testing.assert_allclose(answer_loss(logits, labels), expected, rtol=1e-6)
