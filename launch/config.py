"""Show every field of a run's config; the same as `calce config`."""

import sys
from pathlib import Path

# The package of this checkout, not another one that is installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from calce_jax.commands.cli import launch

if __name__ == "__main__":
    launch("config")
