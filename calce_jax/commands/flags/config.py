"""Reading `--config=PRESET`, `--config=FILE:ARGUMENT` and `--config.FIELD=VALUE`."""

import difflib
import sys
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from calce_jax.config import ConfigError, field_names
from calce_jax.config_compat import RENAMED_FIELDS
from calce_jax.presets.runs import get_preset

ABOUT = "a preset such as qvhighlights,stage=1, or a file of configs such as configs/calce.py:qvhighlights,stage=1"
PRESET_FILE = Path(__file__).with_name("preset.py")


def define_config(flag_values: flags.FlagValues) -> flags.FlagHolder:
    """Define --config, whose value is a locked `ConfigDict`."""
    return config_flags.DEFINE_config_file("config", None, ABOUT, flag_values=flag_values, lock_config=True)


def parse_config(flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Read the flags; the names of fields and presets are checked first.

    Args:
      flag_values: the command's flags.
      argv: the program's name and its arguments.

    Returns:
      The program's name and what is no flag.

    Raises:
      ConfigError: there is no such preset, file or field.
      flags.Error: another flag is wrong.
    """
    names = [f"--config.{name}" for name in field_names()]
    read = [argv[0], *(_checked(argument, names) for argument in argv[1:])]
    # ml_collections looks for fields of the config here.
    sys.argv = read
    return flag_values(read)


def _checked(argument: str, names: list[str]) -> str:
    flag, equals, value = argument.partition("=")
    flag = "--" + flag.lstrip("-")
    if flag == "--config" and value:
        return f"--config={_config_file(value)}"
    if not flag.startswith("--config."):
        return argument
    renamed = RENAMED_FIELDS.get(flag.removeprefix("--config."))
    if renamed:
        print(f"{flag} is --config.{renamed} now", file=sys.stderr)
        return f"--config.{renamed}{equals}{value}"
    if flag not in names:
        near = difflib.get_close_matches(flag, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(name[9:] for name in names)}"
        raise ConfigError(f"{flag}: no such field", hint)
    return argument


def _config_file(value: str) -> str:
    """Return "FILE:ARGUMENT" for ml_collections, from that or from the name of a preset."""
    file, colon, argument = value.partition(":")
    if Path(file).is_file():
        return value
    if colon and Path(file).parts[-2:] == ("configs", "calce.py"):
        value = argument  # away from a checkout
    elif colon or file.endswith(".py"):
        raise ConfigError(f"--config: there is no file {file}", f"give {ABOUT}")
    get_preset(value)
    return f"{PRESET_FILE}:{value}"
