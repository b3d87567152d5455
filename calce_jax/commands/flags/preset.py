"""The config file that ml_collections reads for `--config=PRESET`."""

from ml_collections import ConfigDict

from calce_jax.config import to_dict
from calce_jax.presets.runs import get_preset


def get_config(name: str = "") -> ConfigDict:
    """Return the plain values of a preset.

    Raises:
      ConfigError: there is no such preset.
    """
    return ConfigDict(to_dict(get_preset(name))).lock()
