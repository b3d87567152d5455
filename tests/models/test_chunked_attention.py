"""Attention in chunks against attention at once: every way of dividing rows and heads, with its gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.distributed.sharding import build_mesh
from calce_jax.models import chunked_attention
from calce_jax.models.attention import attention
from tests.helpers.equations import equations

B, Q, L, N, H = 4, 5, 6, 6, 8
BYTES_OF_A_HEAD = 4 * Q * L
# Scores of so many heads at once, and the length of the loop that follows.
LOOPS = {1: 24, 2: 12, 3: 8, 5: 8, 6: 4, 17: 2, 23: 2, 24: 1}


def draw():
    rng = np.random.default_rng(0)
    shapes = (B, Q, N, H), (B, L, N, H), (B, L, N, H)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def options():
    """Yield biases and masks of all shapes that broadcast."""
    rng = np.random.default_rng(1)
    yield {}
    yield {
        "bias": jnp.asarray(rng.normal(size=(1, N, Q, L)), jnp.float32),
        "mask": jnp.asarray(rng.random((B, 1, L)) < 0.7),
    }
    yield {
        "bias": jnp.asarray(rng.normal(size=(B, 1, 1, L)), jnp.float32),
        "mask": jnp.asarray(rng.random((1, Q, L)) < 0.7),
    }
    yield {"bias": jnp.asarray(rng.normal(size=(B, N, Q, L)), jnp.float32)}


def run(**kwargs):
    """Return the attended values and the gradients of their squared sum."""

    def loss(*inputs):
        attended = attention(*inputs, scale=0.3, **kwargs)
        return jnp.square(attended).sum(), attended

    gradients, attended = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*draw())
    return attended, *gradients


def loops(**kwargs):
    program = jax.make_jaxpr(partial(attention, **kwargs))(*draw())
    return [equation.params["length"] for equation in equations(program) if equation.primitive.name == "scan"]


@pytest.mark.parametrize("heads", LOOPS)
def test_equal_in_chunks(monkeypatch, heads):
    """Sums over keys are of the same order; those of the gradients by key and value over queries are too."""
    for kwargs in options():
        monkeypatch.setattr(chunked_attention, "MAX_BYTES_AT_ONCE", BYTES_OF_A_HEAD * B * N)
        assert not loops(**kwargs)
        expected = run(**kwargs)
        monkeypatch.setattr(chunked_attention, "MAX_BYTES_AT_ONCE", BYTES_OF_A_HEAD * B * N - 1)
        monkeypatch.setattr(chunked_attention, "CHUNK_BYTES", BYTES_OF_A_HEAD * heads)
        assert loops(**kwargs) == [LOOPS[heads]]
        for ours, theirs in zip(run(**kwargs), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_at_once_where_a_loop_would_cost(monkeypatch):
    """Dropout draws for all heads at once; over several devices, a loop would gather what they hold."""
    monkeypatch.setattr(chunked_attention, "MAX_BYTES_AT_ONCE", 0)
    monkeypatch.setattr(chunked_attention, "CHUNK_BYTES", BYTES_OF_A_HEAD)
    assert loops() == [B * N]
    assert not loops(dropout_rate=0.5, dropout_key=jax.random.key(0))
    with jax.set_mesh(build_mesh((2, 1, 2), jax.devices())):
        assert not loops()


def test_a_head_too_large_for_the_cache(monkeypatch):
    monkeypatch.setattr(chunked_attention, "MAX_BYTES_AT_ONCE", 0)
    monkeypatch.setattr(chunked_attention, "CHUNK_BYTES", BYTES_OF_A_HEAD // 2)
    assert loops() == [B * N]
