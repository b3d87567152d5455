"""Parse `--config=PRESET`, `--config=FILE:ARGUMENT` and `--config.FIELD=VALUE`."""

import difflib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from calce_jax.commands.runner import warn_deprecated
from calce_jax.config import ConfigError, RunConfig, field_names, validate
from calce_jax.config_compat import RENAMED_FIELDS
from calce_jax.errors import UsageError, UserError
from calce_jax.presets.runs import DATASETS, current_name, get_preset

CONFIG_HELP = (
    "a preset such as qvhighlights,stage=1, or a file of configs such as configs/calce.py:qvhighlights,stage=1"
)
PRESET_FILE = Path(__file__).with_name("preset.py")


def define_config(flag_values: flags.FlagValues) -> flags.FlagHolder:
    """Define --config; its value is a locked `ConfigDict`."""
    return config_flags.DEFINE_config_file("config", None, CONFIG_HELP, flag_values=flag_values, lock_config=True)


def parse_config(flag_values: flags.FlagValues, argv: list[str]) -> list[str]:
    """Parse the flags of a command with --config; checks the names of presets and fields first.

    Args:
      flag_values: the command's flags.
      argv: the program's name and its arguments.

    Returns:
      The program's name and the arguments that are not flags.

    Raises:
      ConfigError: there is no such preset, file or field.
      flags.Error: another flag is wrong.
    """
    names = [f"--config.{name}" for name in field_names()]
    arguments = [argv[0], *(_resolve_argument(argument, names) for argument in _join_config(argv[1:]))]
    # ml_collections reads overrides of the config's fields from sys.argv.
    sys.argv = arguments
    try:
        return flag_values(arguments)
    except (flags.Error, UserError):
        raise
    except Exception as error:  # of ml_collections, whose overrides expect the fields of a whole config
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"--config: {reason:.200}", "return every field from get_config, see configs/calce.py"
        ) from error


def _join_config(arguments: list[str]) -> Iterator[str]:
    """Yield the arguments with "--config VALUE" as "--config=VALUE"."""
    remaining = iter(arguments)
    for argument in remaining:
        value = next(remaining, None) if argument in ("--config", "-config") else None
        yield argument if value is None else f"{argument}={value}"


def validate_config(config: flags.FlagHolder) -> RunConfig:
    """Return the config of a command line.

    Raises:
      UsageError: lists each wrong field, see `calce_jax.config.validate`.
    """
    try:
        return validate(config.value)
    except ConfigError as error:
        raise UsageError(error.reason, error.remedy) from None


def _resolve_argument(argument: str, names: list[str]) -> str:
    """Return an argument with the config's file in place of a preset, and with today's names of renamed fields."""
    flag, equals, value = argument.partition("=")
    flag = "--" + flag.lstrip("-")
    if flag == "--config" and equals:
        return f"--config={_config_file(value)}"
    if not flag.startswith("--config."):
        return argument
    renamed = RENAMED_FIELDS.get(flag.removeprefix("--config."))
    if renamed:
        warn_deprecated(flag, f"--config.{renamed}")
        return f"--config.{renamed}{equals}{value}"
    if flag not in names:
        near = difflib.get_close_matches(flag, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(name[9:] for name in names)}"
        raise ConfigError(f"{flag}: no such field", hint)
    if fields := [name for name in names if name.startswith(f"{flag}.")]:
        raise ConfigError(f"{argument}: {flag} is a group of fields", f"set one of {', '.join(fields)}")
    return argument


def _config_file(value: str) -> str:
    """Return "PRESET_FILE:VALUE" for ml_collections; `value` is the name of a preset, or "FILE[:ARGUMENT]".

    Raises:
      ConfigError: it is neither, or the file is wrong.
    """
    if not value:
        raise ConfigError("--config is empty", f"give {CONFIG_HELP}")
    file, colon, argument = value.partition(":")
    is_presets_file = bool(colon) and Path(file).parts[-2:] == ("configs", "calce.py")
    name = argument if is_presets_file else value
    if (new_name := current_name(name)) != name and (is_presets_file or not os.path.isfile(file)):
        warn_deprecated(f"--config={value}", f"--config={value.removesuffix(name)}{new_name}")
    if os.path.isfile(file):
        return f"{PRESET_FILE}:{value}"
    if (colon or file.endswith(".py")) and not is_presets_file:
        raise ConfigError(f"--config: there is no file {file}", f"give {CONFIG_HELP}")
    if os.path.isdir(value) and value not in DATASETS:
        raise ConfigError(f"--config={value} is a folder", f"give {CONFIG_HELP}")
    get_preset(name)  # outside a checkout, the preset of that name is the same as in configs/calce.py
    return f"{PRESET_FILE}:{name}"
