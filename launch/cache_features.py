"""Store the features of the vision encoder; the same as `calce cache_features`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("cache_features")
