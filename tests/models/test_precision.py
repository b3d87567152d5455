"""What must be computed in float32 while activations are bfloat16; compared with float64 of the same rounded inputs.

And that a product of float32 is one on devices that would round its factors to TF32 or bfloat16.
"""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.inference.predict_step import make_predict
from calce_jax.models.attention import attention
from calce_jax.models.calce import Calce, answer_loss
from calce_jax.models.kv_cache import KVCache, cached_attention
from calce_jax.models.layers import LayerNorm, Linear, RMSNorm, gelu
from calce_jax.models.lora import LoraConfig, LoraLinear
from calce_jax.models.segment_ranker import init_segment_ranker
from calce_jax.models.vit import CLIP_MEAN, CLIP_STD, normalise_frames
from calce_jax.models.whisper import Whisper
from tests.helpers.equations import equations
from tests.helpers.tiny_model import BUCKETS, IMAGE_SIZE, SIZES, STEPS, abstract_model, make_batch

# A result is rounded to bfloat16 once: half a unit in the last of 8 bits.
ONE_ROUNDING = 2.0**-8
RNG = np.random.default_rng(0)


def bfloat16(array):
    return jnp.asarray(array, jnp.bfloat16)


def float64(array):
    return np.asarray(array).astype(np.float64)


def test_the_loss_of_an_answer():
    logits = bfloat16(20 * RNG.normal(size=(2, 3, 50)))
    labels = jnp.asarray(RNG.integers(1, 50, (2, 3)), jnp.int32)
    exact = float64(logits)
    token = np.log(np.exp(exact).sum(-1)) - np.take_along_axis(exact, np.asarray(labels)[..., None], -1)[..., 0]
    np.testing.assert_allclose(answer_loss(logits, labels), token.mean(axis=1), rtol=1e-5)


def test_scores_of_attention():
    """Scores near 100 that differ by 1: rounded to bfloat16 they are off by up to 0.25, and weights by 28 %."""
    direction = RNG.normal(size=64)
    query = bfloat16(np.broadcast_to(1.6 * direction, (1, 6, 2, 64)))
    key = bfloat16(direction + RNG.normal(scale=0.08, size=(1, 6, 2, 64)))
    value = bfloat16(RNG.normal(size=(1, 6, 2, 64)))
    scores = np.einsum("bqnh,bknh->bnqk", float64(query), float64(key))
    assert scores.min() > 64
    assert 0.5 < scores.std() < 3
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bnqk,bknh->bqnh", weights / weights.sum(-1, keepdims=True), float64(value))
    # The weights are rounded too, before they meet the values.
    np.testing.assert_allclose(float64(attention(query, key, value)), expected, atol=4 * ONE_ROUNDING)


@pytest.mark.parametrize("norm_type", [LayerNorm, RMSNorm])
def test_norms(norm_type):
    """Activations near 100 that differ by 1: their mean and squares need more than 8 bits."""
    x = bfloat16(100 + RNG.normal(size=(3, 4, 512)))
    exact = float64(x)
    norm = norm_type(512, eps=1e-6)
    centred = exact - exact.mean(-1, keepdims=True) if norm_type is LayerNorm else exact
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
    y = norm(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(float64(y), expected, rtol=ONE_ROUNDING, atol=1e-3)


def test_gelu():
    """1 + erf(x) is nearly 0 for x below -2: rounded to bfloat16 it is off by a third there."""
    x = bfloat16(np.linspace(-3, 3, 601))
    exact = float64(x)
    expected = 0.5 * exact * (1 + np.vectorize(math.erf)(exact / math.sqrt(2)))
    y, gradient = jax.vjp(gelu, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(float64(y), expected, rtol=ONE_ROUNDING, atol=1e-6)
    slope = 0.5 * (1 + np.vectorize(math.erf)(exact / math.sqrt(2))) + exact * np.exp(-(exact**2) / 2) / math.sqrt(
        2 * math.pi
    )
    # Next to its zero at -0.75 the slope is a difference of two numbers of float32.
    np.testing.assert_allclose(float64(gradient(jnp.ones_like(x))[0]), slope, rtol=ONE_ROUNDING, atol=1e-6)


def test_pixels():
    pixels = jnp.asarray(np.arange(256).repeat(3).reshape(256, 3), jnp.uint8)
    expected = (np.arange(256)[:, None] / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    y = normalise_frames(pixels, jnp.bfloat16)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(float64(y), expected, rtol=ONE_ROUNDING, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_towers_compute_in_the_dtype_of_the_config(dtype):
    def run():
        model = Calce(replace(SIZES, dtype=dtype), rngs=nnx.Rngs(0))
        tokens = model.encode_frames(jnp.zeros((1, 2, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8))
        return tokens, model.encode_queries(tokens)

    tokens, features = jax.eval_shape(run)
    assert (tokens.dtype, features.queries.dtype, features.means.dtype) == (dtype, dtype, "float32")


HIGHEST = (jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)


def precisions(program, *arguments):
    """Return the precisions of a program's products by the dtype of their factors, without a default precision."""
    found = {}
    with jax.default_matmul_precision(None):
        for equation in equations(jax.make_jaxpr(program)(*arguments)):
            if equation.primitive.name == "dot_general":
                dtype = str(equation.invars[0].aval.dtype)
                found.setdefault(dtype, set()).add(equation.params["precision"])
    return found


@pytest.mark.slow
def test_products_of_a_float32_prediction_are_float32():
    """From pixels to beams, with adapters, key frames and captions."""
    graph, weights = abstract_model(SIZES)
    program = make_predict(graph, replace(STEPS[2], buckets=BUCKETS[:1]))
    assert precisions(program, *weights, make_batch((8, 8))) == {"float32": {HIGHEST}}


def test_captions_are_compared_in_float32_by_a_bfloat16_model():
    graph, weights = abstract_model(replace(SIZES, dtype="bfloat16"))

    def compare(trainable, frozen, batch):
        return nnx.merge(graph, trainable, frozen).select_captions(batch, STEPS[2].selection)

    assert precisions(compare, *weights, make_batch((8, 8))) == {"float32": {HIGHEST}}


@pytest.mark.parametrize(("dtype", "precision"), [("float32", HIGHEST), ("bfloat16", None)])
def test_products_of_layers_and_their_gradients(dtype, precision):
    linear = LoraLinear(Linear(4, 4, rngs=nnx.Rngs(0)), LoraConfig(rank=2), rngs=nnx.Rngs(0))
    graph, params = nnx.split(linear)
    x = jnp.ones((2, 4), dtype)
    gradient = jax.grad(lambda params, x: nnx.merge(graph, params)(x).astype(jnp.float32).sum(), argnums=(0, 1))
    assert precisions(gradient, params, x) == {dtype: {precision}}
    assert precisions(lambda params: nnx.merge(graph, params).merge().kernel[...], params) == {"float32": {HIGHEST}}
    whisper = SimpleNamespace(decoder=SimpleNamespace(tokens=jnp.ones((5, 4))))
    assert precisions(lambda: Whisper.logits(whisper, x)) == {dtype: {precision}}
    heads = jnp.ones((1, 2, 1, 4), dtype)
    cache = KVCache.from_projections(heads, heads)
    assert precisions(lambda: cached_attention(cache, heads)) == {dtype: {precision}}
    assert precisions(attention, heads, heads, heads) == {dtype: {precision}}
    if dtype == "float32":  # in bfloat16 the function asks for an algorithm by name
        fused = partial(attention, implementation="dpa")
        assert precisions(fused, heads, heads, heads) == {dtype: {precision}}
    ranker = init_segment_ranker(4, 4, jax.random.key(0))
    assert precisions(lambda: (ranker.embed_images(x), ranker.embed_texts(x))) == {"float32": {HIGHEST}}
