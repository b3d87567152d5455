"""Training steps of both sides of `benchmarks.gpu`; `python -m tests.helpers.gpu_training DIR` fails if they differ.

In a process of its own: jax lowers a program with the shapes of a `Batch` in a form that the tests' type checks refuse.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from benchmarks.gpu import training
from benchmarks.gpu.plan import Plan, Sizes
from benchmarks.paired import BenchmarkSettings, ComparisonRow
from calce_jax.config import LoraConfig


def main(folder: Path) -> None:
    """Take three steps in float32 without dropout, two videos each, and compare losses and what is left behind."""
    sizes = Sizes.rehearsal()
    t5 = dataclasses.replace(sizes.model.t5, dropout_rate=0.0)
    model = dataclasses.replace(sizes.model, t5=t5, lora=LoraConfig(dropout=0.0))
    training.LEARNING_RATE = 3e-3

    def three_steps(settings, name, ours, theirs, **options):
        losses = np.array([(float(ours()), float(theirs())) for _ in range(3)])
        print(losses)
        np.testing.assert_allclose(losses[:, 0], losses[:, 1], rtol=1e-5)
        assert losses[2, 0] < losses[0, 0] - 0.1
        return ComparisonRow(name, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, "torch", "")

    training.compare = three_steps
    settings = BenchmarkSettings("cpu", "float32", threads=1, rounds=1, out=folder, peak=0.0)
    plan = Plan(settings, dataclasses.replace(sizes, model=model))
    before = {name: parameter.clone() for name, parameter in plan.models.blip2.named_parameters()}
    assert list(plan.train_step(2, "none"))
    # The model is as it was for the sections that follow.
    for name, parameter in plan.models.blip2.named_parameters():
        assert (parameter == before[name]).all(), name
    assert not any(module.training or module._forward_hooks for module in plan.models.blip2.modules())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
