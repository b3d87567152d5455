"""Convert weights; the same as `calce convert`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("convert")
