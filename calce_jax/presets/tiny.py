"""Configs of the tiny model of the package."""

from dataclasses import replace

from calce_jax.config import RunConfig, Stage
from calce_jax.presets.datasets import TINY_BASE
from calce_jax.presets.runs import get_preset


def tiny_config(stage: Stage) -> RunConfig:
    """Return the config of one stage on a single device, with the packaged base weights and no earlier run."""
    run = get_preset(f"shapes,stage={stage}")
    return replace(run, mesh="single", weights=replace(run.weights, base=TINY_BASE, start=""))
