"""Fetch published weights and annotations; the same as `calce fetch`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("fetch")
