"""The tiny model that comes with the package."""

from dataclasses import replace

from calce_jax.config import RunConfig, Stage
from calce_jax.presets.runs import get_preset


def tiny_config(stage: Stage) -> RunConfig:
    """Return the config of one stage of the tiny model on one device: base weights, no run to start from."""
    run = get_preset(f"shapes,stage={stage}")
    return replace(run, mesh="single", weights=replace(run.weights, start=""))
