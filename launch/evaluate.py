"""Score predictions; the same as `calce evaluate`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("evaluate")
