"""The library's presets as a config file: `--config=configs/calce.py:qvhighlights,stage=1`.

`--config=qvhighlights,stage=1` does the same. Copy this file to write down a run of your own: change fields of the
`ConfigDict` before it is returned. `calce_jax.presets.runs` says what the argument may be, and `calce_jax.config` what
each field means. Any field can also be changed on the command line: `--config.schedule.epochs=20`.
"""

from ml_collections import ConfigDict

from calce_jax.config import to_dict
from calce_jax.presets.runs import get_preset


def get_config(argument: str = "") -> ConfigDict:
    """Return the config of a run as plain values.

    Raises:
      ConfigError: the argument names something that does not exist.
    """
    return ConfigDict(to_dict(get_preset(argument))).lock()
