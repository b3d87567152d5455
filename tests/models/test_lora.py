"""LoRA adapters: their shapes, their scale, merging, and dropout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.distributed.param_names import named_leaves
from calce_jax.models import lora
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.lora import LoraConfig, LoraLinear
from calce_jax.models.t5 import T5

pytestmark = pytest.mark.slow

TINY = T5Config(width=16, heads=2, head_width=4, mlp_width=24, encoder_depth=2, decoder_depth=3, vocab=30)


def model(config: LoraConfig | None = None) -> T5:
    t5 = T5(TINY, rngs=nnx.Rngs(0))
    if config:
        lora.add_adapters(t5, config, rngs=nnx.Rngs(1))
    return t5


@nnx.jit
def logits(t5: T5, key: jax.Array | None = None) -> jax.Array:
    x = jax.random.normal(jax.random.key(3), (2, 7, TINY.width))
    mask = jnp.arange(7)[None] < jnp.array([7, 5])[:, None]
    ids = jnp.array([[0, 4, 9], [0, 2, 1]])
    return t5.decode(ids, t5.encode(x, mask), mask, key=key)


def randomised(t5: T5) -> T5:
    for _, module in nnx.iter_modules(t5):
        if isinstance(module, LoraLinear):
            module.b[...] = 0.3 * jax.random.normal(jax.random.key(5), module.b.shape)
    return t5


def test_every_linear_layer_gets_an_adapter_with_a_leading_axis_where_blocks_are_stacked():
    leaves = named_leaves(nnx.state(model(LoraConfig(rank=3))))
    adapters = {name: leaf.shape for name, leaf in leaves.items() if name.endswith(("/a", "/b"))}
    # q k v o and three of the feed-forward in the encoder, four more in the decoder, and the head.
    assert len(adapters) == 2 * (7 + 11 + 1)
    assert adapters["encoder/blocks/attention/q/a"] == (2, 16, 3)
    assert adapters["decoder/blocks/cross_attention/o/b"] == (3, 3, 16)
    assert adapters["lm_head/b"] == (3, 30)


def test_a_fresh_adapter_changes_nothing_and_a_trained_one_does():
    plain, adapted = logits(model()), model(LoraConfig())
    np.testing.assert_array_equal(logits(adapted), plain)
    assert np.abs(logits(randomised(adapted)) - plain).max() > 1e-2


def test_the_result_is_scaled_by_alpha_over_rank():
    linear = randomised(model(LoraConfig(rank=4, alpha=12.0))).lm_head
    assert isinstance(linear, LoraLinear)
    x = jax.random.normal(jax.random.key(0), (5, TINY.width))
    expected = x @ linear.base.kernel[...] + 3.0 * (x @ linear.a[...]) @ linear.b[...]
    np.testing.assert_allclose(linear(x), expected, rtol=1e-5, atol=1e-5)


def test_merging_leaves_a_plain_model_with_the_same_outputs():
    adapted = randomised(model(LoraConfig()))
    before = logits(adapted)
    lora.merge(adapted)
    assert not any(isinstance(module, LoraLinear) for _, module in nnx.iter_modules(adapted))
    assert nnx.state(adapted).keys() == nnx.state(model()).keys()
    # (W + AB) x against W x + A (B x): float32 rounding through five blocks.
    np.testing.assert_allclose(logits(adapted), before, rtol=1e-4, atol=1e-4)


def test_only_a_key_enables_dropout():
    linear = randomised(model(LoraConfig(dropout=0.5))).lm_head
    x = jnp.ones((4, TINY.width))
    np.testing.assert_array_equal(linear(x), linear(x))
    assert np.abs(linear(x, key=jax.random.key(0)) - linear(x, key=jax.random.key(1))).max() > 1e-3
