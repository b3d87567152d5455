"""Every implementation of attention against "xla"; the TPU kernel runs in Pallas' interpreter."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental.pallas import tpu as pltpu

from calce_jax.distributed.sharding import build_mesh
from calce_jax.models import attention as module
from calce_jax.models.attention import attention
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig
from tests.helpers.tiny_model import SIZES, make_model

pytestmark = pytest.mark.slow

# Tolerances of float32 sums in another order; the flash kernel rescales block by block, and gradients reach 10.
CLOSE, BLOCKWISE = 1e-6, 2e-5
B, N, H = 2, 2, 8


def draw(queries, keys):
    """Return query, key, value, bias and a key mask (B, 1, L): all keys of the first row, about half of the second."""
    rng = np.random.default_rng(0)
    shapes = [(B, queries, N, H), (B, keys, N, H), (B, keys, N, H), (1, N, queries, keys)]
    key_mask = np.arange(keys) < np.array([[keys], [keys // 2 + 1]])
    return *(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), jnp.asarray(key_mask)[:, None]


def results(queries, keys, implementation, *, bias, mask, scale=0.3):
    """Return the attended values and the gradients of their squared sum by query, key and value."""
    query, key, value, drawn_bias, key_mask = draw(queries, keys)
    causal = jnp.tril(jnp.ones((1, queries, keys), bool))
    options = {"bias": drawn_bias if bias else None, "mask": {"keys": key_mask, "causal": causal, "none": None}[mask]}
    run = partial(attention, **options, scale=scale, implementation=implementation)

    def squared_sum(*inputs):
        attended = run(*inputs)
        return jnp.square(attended).sum(), attended

    gradients, attended = jax.jit(jax.grad(squared_sum, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return attended, *gradients


def compare(actual, expected, atol=CLOSE):
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("bias", "mask"), [(False, "none"), (True, "keys"), (True, "causal")])
def test_dpa(bias, mask):
    expected = results(5, 5, "xla", bias=bias, mask=mask)
    compare(results(5, 5, "dpa", bias=bias, mask=mask), expected)


@pytest.mark.parametrize(
    ("bias", "mask", "scale"),
    [
        (True, "keys", 0.3),
        pytest.param(True, "none", 1.0, marks=pytest.mark.release),
        pytest.param(False, "keys", 0.3, marks=pytest.mark.release),
    ],
)
def test_flash(monkeypatch, bias, mask, scale):
    """Two blocks of queries and of keys, the second of each partly filled."""
    monkeypatch.setattr(module, "FLASH_MIN_LENGTH", 128)
    monkeypatch.setattr(module, "FLASH_BLOCK_SIZE", 128)
    expected = results(130, 140, "xla", bias=bias, mask=mask, scale=scale)
    with pltpu.force_tpu_interpret_mode():
        compare(results(130, 140, "flash", bias=bias, mask=mask, scale=scale), expected, BLOCKWISE)


def test_flash_falls_back_to_xla():
    """Outside the interpreter the kernel fails on a CPU, so each of these must have run as "xla"."""
    query, key, value, _, _ = draw(module.FLASH_MIN_LENGTH, module.FLASH_MIN_LENGTH)
    causal = jnp.tril(jnp.ones((1, module.FLASH_MIN_LENGTH, module.FLASH_MIN_LENGTH), bool))
    for inputs, options in (
        ((query[:, :1], key, value), {}),
        ((query, key, value), {"mask": causal}),
        ((query, key, value), {"dropout_rate": 0.5, "dropout_key": jax.random.key(0)}),
    ):
        expected = attention(*inputs, **options)
        np.testing.assert_array_equal(attention(*inputs, **options, implementation="flash"), expected)
    with pytest.raises(Exception, match="interpret mode"):
        attention(query, key, value, implementation="flash")


def test_flash_is_split_over_devices():
    """Traced only: without shard_map the partitioner refuses the kernel."""
    mesh = build_mesh((2, 1, 2), jax.devices())
    with jax.set_mesh(mesh):
        query, key, value, bias, key_mask = draw(module.FLASH_MIN_LENGTH, module.FLASH_MIN_LENGTH)
        run = jax.jit(lambda *x: attention(*x[:3], bias=x[3], mask=x[4], implementation="flash"))
        traced = run.trace(query, key, value, bias, key_mask)
    assert "shard_map" in str(traced.jaxpr)
    assert traced.out_info.shape == query.shape


def test_the_config_reaches_every_tower():
    """All towers of the model, with the same weights under both implementations."""
    _, trainable, frozen = make_model()

    @partial(jax.jit, static_argnums=0)
    def run(sizes: CalceConfig, trainable, frozen):
        graph = nnx.graphdef(nnx.eval_shape(lambda: Calce(sizes, rngs=nnx.Rngs(0))))
        model = nnx.merge(graph, trainable, frozen)
        frames = jnp.ones((1, sizes.vit.image_size, sizes.vit.image_size, 3))
        queries = model.qformer.encode_images(model.vit(frames))
        memory = model.t5.encode(queries, jnp.ones(queries.shape[:2], bool))
        return queries, memory

    compare(run(SIZES.with_attention("dpa"), trainable, frozen), run(SIZES, trainable, frozen))
    towers = nnx.eval_shape(lambda: Calce(SIZES.with_attention("flash"), rngs=nnx.Rngs(0)))
    implementations = [
        module.implementation for _, module in nnx.iter_modules(towers) if hasattr(module, "implementation")
    ]
    assert implementations
    assert set(implementations) == {"flash"}
