"""Every implementation of attention against the plain one, TPUs' kernel too, which is interpreted here."""

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
from calce_jax.models.calce import Calce, CalceConfig
from tests.helpers.tiny_model import SIZES, make_model

# float32 sums in another order; of blocks, each scaled anew when a larger score is met, of gradients of up to 10.
CLOSE, IN_BLOCKS = 1e-6, 2e-5
B, N, H = 2, 2, 8


def draw(queries, keys):
    """Return query, key, value and bias, and which keys there are: all of one row, some of the other."""
    rng = np.random.default_rng(0)
    shapes = [(B, queries, N, H), (B, keys, N, H), (B, keys, N, H), (1, N, queries, keys)]
    here = np.arange(keys) < np.array([[keys], [keys // 2 + 1]])
    return *(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes), jnp.asarray(here)[:, None]


def results(queries, keys, implementation, *, bias, mask, scale=0.3):
    """Return what comes out, and its gradients."""
    query, key, value, drawn, here = draw(queries, keys)
    causal = jnp.tril(jnp.ones((1, queries, keys), bool))
    given = {"bias": drawn if bias else None, "mask": {"keys": here, "causal": causal, "none": None}[mask]}
    run = partial(attention, **given, scale=scale, implementation=implementation)

    def total(*inputs):
        found = run(*inputs)
        return jnp.square(found).sum(), found

    gradients, found = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)
    return found, *gradients


def compare(found, expected, atol=CLOSE):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=atol)


@pytest.mark.parametrize(("bias", "mask"), [(False, "none"), (True, "keys"), (True, "causal")])
def test_dpa(bias, mask):
    expected = results(5, 5, "xla", bias=bias, mask=mask)
    compare(results(5, 5, "dpa", bias=bias, mask=mask), expected)


@pytest.mark.parametrize(("bias", "mask", "scale"), [(True, "keys", 0.3), (True, "none", 1.0), (False, "keys", 0.3)])
def test_flash(monkeypatch, bias, mask, scale):
    """Two blocks of queries and of keys, neither of them full."""
    monkeypatch.setattr(module, "SHORTEST", 128)
    monkeypatch.setattr(module, "BLOCK", 128)
    expected = results(130, 140, "xla", bias=bias, mask=mask, scale=scale)
    with pltpu.force_tpu_interpret_mode():
        compare(results(130, 140, "flash", bias=bias, mask=mask, scale=scale), expected, IN_BLOCKS)


def test_flash_leaves_what_it_cannot_do_to_xla():
    """Nothing is interpreted here, so the kernel would fail."""
    query, key, value, _, _ = draw(module.FLASH_MIN_LENGTH, module.FLASH_MIN_LENGTH)
    causal = jnp.tril(jnp.ones((1, module.FLASH_MIN_LENGTH, module.FLASH_MIN_LENGTH), bool))
    for inputs, given in (
        ((query[:, :1], key, value), {}),
        ((query, key, value), {"mask": causal}),
        ((query, key, value), {"drop": 0.5, "drop_key": jax.random.key(0)}),
    ):
        expected = attention(*inputs, **given)
        np.testing.assert_array_equal(attention(*inputs, **given, implementation="flash"), expected)
    with pytest.raises(Exception, match="interpret mode"):
        attention(query, key, value, implementation="flash")


def test_flash_is_split_over_devices():
    """Lowered only: it is the partitioner that refuses a kernel it was not told how to split."""
    mesh = build_mesh((2, 1, 2), jax.devices())
    with jax.set_mesh(mesh):
        query, key, value, bias, here = draw(module.FLASH_MIN_LENGTH, module.FLASH_MIN_LENGTH)
        run = jax.jit(lambda *x: attention(*x[:3], bias=x[3], mask=x[4], implementation="flash"))
        traced = run.trace(query, key, value, bias, here)
    assert "shard_map" in str(traced.jaxpr)
    assert traced.out_info.shape == query.shape


def test_the_config_reaches_every_tower():
    """The whole model's towers, with the same weights."""
    _, trainable, frozen = make_model()

    @partial(jax.jit, static_argnums=0)
    def run(sizes: CalceConfig, trainable, frozen):
        graph = nnx.graphdef(nnx.eval_shape(lambda: Calce(sizes, rngs=nnx.Rngs(0))))
        model = nnx.merge(graph, trainable, frozen)
        frames = jnp.ones((1, sizes.vit.image_size, sizes.vit.image_size, 3))
        read = model.qformer.visual(model.vit(frames))
        memory = model.t5.encode(read, jnp.ones(read.shape[:2], bool))
        return read, memory

    compare(run(SIZES.with_attention("dpa"), trainable, frozen), run(SIZES, trainable, frozen))
    towers = nnx.eval_shape(lambda: Calce(SIZES.with_attention("flash"), rngs=nnx.Rngs(0)))
    asked = [module.implementation for _, module in nnx.iter_modules(towers) if hasattr(module, "implementation")]
    assert asked
    assert set(asked) == {"flash"}
