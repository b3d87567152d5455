"""Prepare a dataset; the same as `calce prepare`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("prepare")
