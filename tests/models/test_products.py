"""Products of bfloat16: rounded once on every platform, and in the form that is fast on the one they are traced for."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from calce_jax.models import products
from calce_jax.models.products import einsum, matmul
from tests.helpers.equations import equations

CASES = {
    "ld,de->le": ((3, 40), (40, 5)),
    "bnql,bnlh->bnqh": ((2, 3, 4, 40), (2, 3, 40, 5)),
}


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def mesh_of(platform):
    device = AbstractDevice(device_kind=platform, num_cores=None, platform=platform)
    return AbstractMesh((1,), ("data",), abstract_device=device)


@pytest.mark.parametrize("subscripts", CASES)
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_product_and_gradients(monkeypatch, subscripts, platform):
    """Against float64 of the same rounded factors and cotangent; each result is rounded once, to 8 bits."""
    monkeypatch.setattr(products, "cpu_has_bfloat16", lambda: True)
    (a, b), terms = (draw(shape, seed) for seed, shape in enumerate(CASES[subscripts])), subscripts.split("->")
    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        result, transpose = jax.vjp(partial(einsum, subscripts), a, b)
        cotangent = draw(result.shape, 2)
        gradients = transpose(cotangent)
    a_term, b_term = terms[0].split(",")
    exact = {name: np.asarray(x).astype(np.float64) for name, x in (("a", a), ("b", b), ("cotangent", cotangent))}
    expected = (
        np.einsum(subscripts, exact["a"], exact["b"]),
        np.einsum(f"{terms[1]},{b_term}->{a_term}", exact["cotangent"], exact["b"]),
        np.einsum(f"{a_term},{terms[1]}->{b_term}", exact["a"], exact["cotangent"]),
    )
    for ours, theirs in zip((result, *gradients), expected, strict=True):
        assert ours.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(ours).astype(np.float64), theirs, rtol=2.0**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "has_bfloat16", "result_dtype"),
    [("cpu", True, "float32"), ("cpu", False, "bfloat16"), ("gpu", True, "bfloat16"), ("tpu", True, "bfloat16")],
)
def test_form_of_products(monkeypatch, platform, has_bfloat16, result_dtype):
    """No factor is widened, in the gradient either; the result is, on a CPU with instructions for bfloat16 alone."""
    monkeypatch.setattr(products, "cpu_has_bfloat16", lambda: has_bfloat16)

    def loss(a, b):
        return jnp.square(matmul(a, b).astype(jnp.float32)).sum()

    with jax.sharding.use_abstract_mesh(mesh_of(platform)):
        program = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(draw((3, 40), 0), draw((40, 5), 1))
    dots = [equation for equation in equations(program) if equation.primitive.name == "dot_general"]
    assert len(dots) == 3
    for dot in dots:
        assert {factor.aval.dtype for factor in dot.invars} == {jnp.dtype(jnp.bfloat16)}
        assert dot.outvars[0].aval.dtype == result_dtype


def test_float32_stays_float32():
    program = jax.make_jaxpr(matmul)(jnp.ones((3, 4)), jnp.ones((4, 5)))
    assert [equation.primitive.name for equation in equations(program)] == ["dot_general"]
