"""Merge stage 1's windows into annotations; the same as `calce merge`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("merge")
