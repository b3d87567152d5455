import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.config import OptimizerConfig
from calce_jax.training.optimizer import has_weight_decay, make_optimizer
from calce_jax.training.state import apply_gradients, create_train_state, is_finite
from tests.helpers.oracle import oracle

RATE = 3e-4

# `query_proj` of the original's tiny model before and after its first AdamW step at a rate of 3e-4, and the gradient.
WEIGHT = [
    [0.043434105813503265, -0.11304895579814911, 0.015995772555470467, -0.3475635051727295],
    [-0.09217727929353714, -0.12057589739561081, 0.17260707914829254, 0.5120996832847595],
]
WEIGHT_GRADIENT = [
    [-3.7111573219299316, -7.331297397613525, -6.943718433380127, -8.356472969055176],
    [1.4825273752212524, 1.6540614366531372, 1.7281193733215332, 1.7255959510803223],
]
WEIGHT_AFTER = [
    [0.04373345524072647, -0.11274725943803787, 0.016295531764626503, -0.3472582995891571],
    [-0.09247589111328125, -0.1208740845322609, 0.17230448126792908, 0.511792004108429],
]
BIAS, BIAS_GRADIENT = [-0.09682051837444305, 0.33067628741264343], [11.740022659301758, -1.6224397420883179]
BIAS_AFTER = [-0.09712051600217819, 0.330976277589798]


def config(accumulate=1):
    return OptimizerConfig(accumulate=accumulate, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.05)


def tree(kernel, bias):
    return {"query_proj": {"kernel": jnp.array(kernel, jnp.float32).T, "bias": jnp.array(bias, jnp.float32)}}


def run(params, gradients, rates, accumulate=1, behaviour="default"):
    optimizer = make_optimizer(config(accumulate), behaviour)
    step = jax.jit(lambda state, gradient, rate: apply_gradients(state, gradient, optimizer, rate))
    state, states = create_train_state(params, optimizer), []
    for gradient, rate in zip(gradients, rates, strict=True):
        state = step(state, gradient, jnp.float32(rate))
        states.append(state)
    return states


def assert_close(left, right, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=atol), left, right)


def test_first_step_is_the_originals():
    (state,) = run(tree(WEIGHT, BIAS), [tree(WEIGHT_GRADIENT, BIAS_GRADIENT)], [RATE])
    # One rounding of float32 at 0.5.
    assert_close(state.trainable, tree(WEIGHT_AFTER, BIAS_AFTER), 6e-8)
    assert int(state.step) == 1


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("ln_vision", "scale"), False),
        (("ln_vision", "bias"), False),
        (("query_proj", "bias"), False),
        (("t5_proj", "bias"), False),
        (("query_proj", "kernel"), True),
        (("t5", "encoder", "blocks", "attention", "q", "a"), True),
        (("t5", "lm_head", "b"), True),
    ],
)
def test_what_decays(path, expected):
    assert has_weight_decay(path) is expected


def torch_adamw(start, gradients, rates, divide):
    """Return torch's parameters after a step with every second pair of gradients, summed and divided."""
    import torch  # noqa: PLC0415

    pair = [torch.nn.Parameter(torch.tensor(x)) for x in start]
    optimizer = torch.optim.AdamW(
        [{"params": [pair[0]], "weight_decay": 0.05}, {"params": [pair[1]], "weight_decay": 0.0}], eps=1e-8
    )
    for i, (rate, gradient) in enumerate(zip(rates, gradients, strict=True)):
        for parameter, g in zip(pair, gradient, strict=True):
            share = torch.tensor(g) / divide
            parameter.grad = share if parameter.grad is None else parameter.grad + share
        if i % 2:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    kernel, bias = (p.detach().numpy() for p in pair)
    return {"kernel": kernel, "bias": bias}


@pytest.mark.parametrize("behaviour", ["default", "reference"])
def test_equals_torch_over_accumulated_steps(behaviour):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(2, 3)).astype("f"), rng.normal(size=2).astype("f")
    gradients = [(rng.normal(size=(2, 3)).astype("f"), rng.normal(size=2).astype("f")) for _ in range(8)]
    rates = [1e-3 * (i + 1) for i in range(8)]
    divide = 1 if behaviour == "reference" else 2
    theirs = oracle(f"adamw_{behaviour}", lambda: torch_adamw((kernel, bias), gradients, rates, divide))
    states = run(tree(kernel, bias), [tree(*g) for g in gradients], rates, accumulate=2, behaviour=behaviour)
    # A few float32 roundings of numbers near 1, in another order.
    assert_close(states[-1].trainable, tree(theirs["kernel"], theirs["bias"]), 1e-6)


def test_accumulation_waits_sums_or_averages_and_takes_the_last_rate():
    start = tree(np.ones((2, 2)), np.ones(2))
    gradients = [tree(np.full((2, 2), g), np.full(2, g)) for g in (1.0, 3.0, 5.0)]
    for behaviour, gathered in (("default", 2.0), ("reference", 4.0)):
        first, second, third = run(start, gradients, [0.5, 1e-3, 0.5], accumulate=2, behaviour=behaviour)
        assert_close(first.trainable, start, 0.0)
        # Adam's first step has the size of the rate, whatever the gradient's.
        np.testing.assert_allclose(second.trainable["query_proj"]["bias"], 1.0 - 1e-3, rtol=1e-6)
        moment = second.opt_state.inner_opt_state[0].mu["query_proj"]["bias"]
        np.testing.assert_allclose(moment, 0.1 * gathered, rtol=1e-6)
        # What an epoch leaves over waits for the next one's first step.
        assert_close(third.trainable, second.trainable, 0.0)
        assert float(third.opt_state.acc_grads["query_proj"]["bias"][0]) == 5.0


@pytest.mark.parametrize("behaviour", ["default", "reference"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_skipped_micro_steps_leave_every_bit_and_the_others_go_on_as_if_they_had_not_been(accumulate, behaviour):
    optimizer = make_optimizer(config(accumulate), behaviour)
    step = jax.jit(
        lambda state, gradient, rate, norm: apply_gradients(
            state, gradient, optimizer, rate, finite=is_finite(jnp.float32(1), norm)
        )
    )
    rng = np.random.default_rng(1)
    good = [tree(rng.normal(size=(2, 3)), rng.normal(size=2)) for _ in range(7)]
    bad = tree(np.full((2, 3), np.nan), np.full(2, np.inf))
    state = create_train_state(tree(rng.normal(size=(2, 3)), rng.normal(size=2)), optimizer)
    alone = run(state.trainable, good, [RATE] * 7, accumulate=accumulate, behaviour=behaviour)[-1]
    for i, gradient in enumerate(good):
        if i in (0, 1, 4):
            for norm in (jnp.nan, jnp.inf):
                skipped = step(state, bad, jnp.float32(RATE), jnp.float32(norm))
                assert int(skipped.step) == int(state.step) + 1
                assert_close((skipped.trainable, skipped.opt_state), (state.trainable, state.opt_state), 0.0)
                state = skipped
        state = step(state, gradient, jnp.float32(RATE), jnp.float32(1))
    assert int(state.step) == 7 + 6
    assert_close((state.trainable, state.opt_state), (alone.trainable, alone.opt_state), 0.0)


@pytest.mark.parametrize(
    ("loss", "norm", "expected"),
    [(1.0, 2.0, True), (np.nan, 2.0, False), (np.inf, 2.0, False), (1.0, np.nan, False), (1.0, np.inf, False)],
)
def test_what_is_finite(loss, norm, expected):
    assert bool(is_finite(jnp.float32(loss), jnp.float32(norm))) is expected
