"""Train one stage; the same as `calce train`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("train")
