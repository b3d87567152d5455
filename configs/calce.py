"""The presets of the library as a config file: `--config=configs/calce.py:qvhighlights,stage=1`.

It is the same as `--config=qvhighlights,stage=1`. Copy this file for a config of your own, and change fields of the
`ConfigDict` before returning it. The argument is described in `calce_jax.presets.runs`, the fields in
`calce_jax.config`. Any field can also be set on the command line: `--config.schedule.epochs=20`.
"""

from ml_collections import ConfigDict

from calce_jax.config import to_dict
from calce_jax.presets.runs import get_preset


def get_config(argument: str = "") -> ConfigDict:
    """Return the config of a preset.

    Raises:
      ConfigError: there is no such preset.
    """
    return ConfigDict(to_dict(get_preset(argument))).lock()
