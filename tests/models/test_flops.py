"""Counted from the sizes beside counted from the traced programs, whose scans are multiplied by their length."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from benchmarks.aot.flops import count_flops
from calce_jax.models import flops
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.models.flops import Flops, StepShape
from calce_jax.models.structure import param_label

# Sizes that all differ, so that no factor can stand for another.
TINY = CalceConfig.tiny(t5_vocab=70, bert_vocab=50)
CONFIG = replace(
    TINY,
    vit=replace(TINY.vit, image_size=24, width=32, heads=2, mlp_width=80, depth=3),
    qformer=replace(TINY.qformer, depth=3, width=48, mlp_width=112, query_tokens=5, image_width=32),
    t5=replace(TINY.t5, width=64, heads=3, head_width=16, mlp_width=144, encoder_depth=3, decoder_depth=2),
    compressed_query_tokens=2,
)
FRAMES, LENGTH, ANSWER, SENTENCE = 2, 21, 6, 7


@pytest.fixture(scope="module")
def model():
    return nnx.eval_shape(lambda: Calce(replace(CONFIG, lora=None), rngs=nnx.Rngs(0)))


def count(function, model, *shapes, dtype=jnp.float32):
    graph, params = nnx.split(model)
    inputs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    return count_flops(jax.make_jaxpr(lambda params, *x: function(nnx.merge(graph, params), *x))(params, *inputs))


def test_towers(model):
    vit, qformer, t5 = CONFIG.vit, CONFIG.qformer, CONFIG.t5
    images = count(lambda m, x: m.vit(x), model, (FRAMES, vit.image_size, vit.image_size, 3))
    assert (flops.vit_frame(vit) * FRAMES).forward == images
    tokens = (FRAMES, vit.num_tokens, vit.width)
    queries = count(lambda m, x: m.qformer.encode_images(x), model, tokens)
    assert (flops.qformer_frame(qformer, vit.num_tokens) * FRAMES).forward == queries
    sentences = count(lambda m, x: m.qformer.embed_sentences(x), model, (4, SENTENCE), dtype=jnp.int32)
    assert (flops.qformer_sentence(qformer, SENTENCE) * 4).forward == sentences
    projected = count(lambda m, x: m.project_queries(x), model, (1, FRAMES, qformer.query_tokens, qformer.width))
    assert (flops.projections_slot(CONFIG) * FRAMES).forward == projected
    encoded = count(lambda m, x: m.t5.encode(x, jnp.ones(x.shape[:2], bool)), model, (1, LENGTH, t5.width))
    assert flops.t5_encoder(t5, LENGTH).forward == encoded
    mask, ids = jnp.ones((1, LENGTH), bool), jnp.zeros((1, ANSWER), jnp.int32)
    decoded = count(lambda m, x: m.t5.decode(ids, x, mask), model, (1, LENGTH, t5.width))
    assert flops.t5_decoder(t5, ANSWER, LENGTH).forward == decoded


def test_the_kinds_of_a_pass():
    both = Flops(10, 4) * 2 + Flops(1, 1)
    assert (both.linear, both.attention, both.forward) == (21, 9, 30)
    assert both.with_gradients(trained_weights=False) == 2 * 21 + 3 * 9
    assert both.with_gradients(trained_weights=True) == 3 * 21 + 3 * 9


@pytest.mark.release
def test_a_training_step():
    """Frozen weights have no gradient, adapters and projections do; within what the first blocks do not pass back."""
    model = nnx.eval_shape(lambda: Calce(CONFIG, rngs=nnx.Rngs(0)))

    def is_trained(path, _):
        return param_label(tuple(map(str, path))) == "trainable"

    graph, trainable, frozen = nnx.split(model, is_trained, ...)
    tokens = jax.ShapeDtypeStruct((1, FRAMES, CONFIG.vit.num_tokens, CONFIG.vit.width), jnp.float32)
    labels, num_frame_tokens = jnp.zeros((1, ANSWER), jnp.int32), FRAMES * (CONFIG.qformer.query_tokens + 2)

    def loss(trainable, frozen, tokens):
        model = nnx.merge(graph, trainable, frozen)
        x = model.project_queries(model.frame_queries(tokens)).reshape(1, num_frame_tokens, -1)
        mask = jnp.ones((1, num_frame_tokens), bool)
        return model.t5.decode(labels, model.t5.encode(x, mask), mask).sum()

    counted = count_flops(jax.make_jaxpr(jax.grad(loss))(trainable, frozen, tokens))
    shape = StepShape(FRAMES, FRAMES, num_frame_tokens, ANSWER, 0, SENTENCE)
    expected = flops.train_row(CONFIG, shape, stage=1, run_vit=False)
    assert counted == pytest.approx(expected, rel=0.03)
    # What else a step runs.
    frame = flops.qformer_frame(CONFIG.qformer, CONFIG.vit.num_tokens)
    vit = flops.vit_frame(CONFIG.vit).forward * FRAMES
    sentences = flops.qformer_sentence(CONFIG.qformer, SENTENCE).forward * 4
    with_text = replace(shape, sentences=4)
    assert flops.train_row(CONFIG, with_text, stage=1) == pytest.approx(expected + vit + sentences)
    assert flops.train_row(CONFIG, shape, stage=2) == pytest.approx(expected + vit + FRAMES * frame.forward)
    frozen_norm = replace(CONFIG, ln_vision="frozen")
    constant = expected - FRAMES * frame.with_gradients(trained_weights=False)
    assert flops.train_row(frozen_norm, shape, stage=2, run_vit=False, run_qformer=False) == pytest.approx(constant)
    assert flops.train_row(frozen_norm, shape, stage=1, run_vit=False) == pytest.approx(
        constant + FRAMES * frame.forward
    )


def test_the_full_size_is_near_the_compiled_programs():
    """docs/scaling.md has 285 TFLOP for four videos at 2,752 tokens, with all that the backward pass computes again."""
    config = CalceConfig.full()
    vit = 75 * flops.vit_frame(config.vit).forward / 1e12
    assert vit == pytest.approx(39, abs=0.5)  # as of the vision tower there
    row = flops.train_row(config, StepShape(75, 75, 2752, 144, 65, 64), stage=1) / 1e12
    assert 50 < row < 285 / 4
