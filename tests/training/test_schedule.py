import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.training.schedule import learning_rate

# (epoch, step within it, rate) of the original's first runs, at four devices.
QVH1 = {"steps_per_epoch": 1805, "epochs": 50, "peak": 3e-4, "floor": 0.0, "warmup_steps": 2255}
QVH1_RATES = [
    (0, 0, 1e-08),
    (0, 1, 1.4303325942350334e-07),
    (0, 1804, 0.00024000199999999998),
    (1, 0, 0.00024000199999999998),
    (1, 450, 0.00029986696674057646),
    (1, 451, 0.0002997040092642407),
    (49, 0, 2.959907357592661e-07),
]
RECORDED = ("qvh_stage1_train", "qvh_stage2_train", "charades_stage1_train", "charades_stage2_train")


@pytest.mark.parametrize(("epoch", "within", "rate"), QVH1_RATES)
def test_reference_rate_is_the_originals(epoch, within, rate):
    step = epoch * QVH1["steps_per_epoch"] + within
    assert learning_rate(step, **QVH1, behaviour="reference") == pytest.approx(rate, rel=1e-14)


def settings(recorded):
    run = recorded["run"]
    return {
        "steps_per_epoch": recorded["iters_per_epoch_4gpu"],
        "epochs": run["max_epoch"],
        "peak": run["init_lr"],
        "floor": float(run["min_lr"]),
        "warmup_from": run["warmup_lr"],
        "warmup_steps": run["warmup_steps"],
    }


@pytest.mark.parametrize("name", RECORDED)
def test_reference_rate_at_every_recorded_step(shared, name):
    recorded = json.loads((shared / "golden/12_lr_optim.json").read_text())["lr"][name]
    arguments = settings(recorded)
    per_epoch = arguments["steps_per_epoch"]
    steps, rates = [], []
    for epoch, within, rate in recorded["sampled_first3epochs"]:
        steps.append(epoch * per_epoch + within)
        rates.append(rate)
    for epoch, (first, last) in enumerate(zip(recorded["epoch_first_lr"], recorded["epoch_last_lr"], strict=True)):
        steps += [epoch * per_epoch, (epoch + 1) * per_epoch - 1]
        rates += [first, last]
    # The order of the additions differs from the original's, by one or two roundings of float64.
    np.testing.assert_allclose(learning_rate(np.array(steps), **arguments, behaviour="reference"), rates, rtol=1e-14)

    resumed = recorded["fresh_scheduler_resumed_at_epoch3"]
    steps = np.array([epoch * per_epoch + within for epoch, within, _ in resumed])
    rates = learning_rate(steps, **arguments, behaviour="reference", first_step=3 * per_epoch)
    np.testing.assert_allclose(rates, [rate for *_, rate in resumed], rtol=1e-14)


def test_a_run_resumed_within_an_epoch_warms_up_again_by_the_epoch():
    arguments = {"steps_per_epoch": 10, "epochs": 5, "peak": 1.0, "floor": 0.0, "warmup_from": 0.0, "warmup_steps": 100}
    resumed = [learning_rate(34, **arguments, behaviour="reference", first_step=step) for step in (30, 34, 39)]
    assert resumed == [pytest.approx(0.16)] * 3, "3 x 4 + 4 steps of 100"
    assert learning_rate(34, **arguments, behaviour="reference", first_step=40) == pytest.approx(0.31)


def test_default_counts_every_step_and_forgets_nothing_on_resume():
    end_of_warmup = QVH1["warmup_steps"]
    slope = (3e-4 - 1e-8) / end_of_warmup
    assert learning_rate(end_of_warmup - 1, **QVH1) == pytest.approx(3e-4 - slope, rel=1e-12)
    assert learning_rate(end_of_warmup, **QVH1) == pytest.approx(3e-4 * 0.5 * (1 + math.cos(math.pi / 50)), rel=1e-12)
    assert learning_rate(3 * 1805 + 7, **QVH1, first_step=3 * 1805) == learning_rate(3 * 1805 + 7, **QVH1)


@pytest.mark.parametrize("behaviour", ["default", "reference"])
def test_the_device_computes_the_same_rates(behaviour):
    steps = np.arange(0, 50 * 1805, 997)
    on_device = jax.jit(lambda s: learning_rate(s, **QVH1, behaviour=behaviour))(jnp.asarray(steps, jnp.int32))
    assert on_device.dtype == jnp.float32
    # float32 rounding of a cosine near -1, relative to the peak.
    np.testing.assert_allclose(on_device, learning_rate(steps, **QVH1, behaviour=behaviour), rtol=1e-6, atol=3e-11)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(0, steps_per_epoch=10, epochs=2, peak=1e-3, floor=0.0, warmup_steps=0) == 1e-3
