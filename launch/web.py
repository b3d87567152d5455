"""Search in a browser; the same as `calce web`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("web")
