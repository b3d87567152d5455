"""Predict every query of a split; the same as `calce infer`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("infer")
