"""Find moments in videos; the same as `calce search`."""

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("search")
