"""The config file that ml_collections reads for every --config: a preset of the library, or a file of the user.

Errors of a file of the user are told in one line; ml_collections itself would print a traceback.
"""

import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from ml_collections import ConfigDict

from calce_jax.config import ConfigError, to_dict
from calce_jax.errors import UserError
from calce_jax.presets.runs import get_preset

EXAMPLE = "see configs/calce.py"


def get_config(name: str = "") -> ConfigDict:
    """Return the plain values of a preset, or of a file as FILE.py[:ARGUMENT].

    Raises:
      ConfigError: there is no such preset; the file is wrong, or returns no config.
    """
    file, colon, argument = name.partition(":")
    if not Path(file).is_file():
        return ConfigDict(to_dict(get_preset(name))).lock()
    config = _call_file(file, [argument] if colon else [])
    if isinstance(config, ConfigDict):
        return config
    raise ConfigError(
        f"{file}: get_config returns {config!r:.60}, which is no ConfigDict", f"return a ConfigDict, {EXAMPLE}"
    )


def _call_file(file: str, arguments: list[str]) -> object:
    """Return what the function `get_config` of a file returns.

    Raises:
      ConfigError: the file is no Python, has no such function, or fails; names the line.
    """
    spec = spec_from_file_location("config_file", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{file} is no Python file", f"give a file FILE.py, {EXAMPLE}")
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"{file} has no get_config", f"define get_config(preset), {EXAMPLE}")
        return module.get_config(*arguments)
    except UserError:
        raise
    except SyntaxError as error:
        raise ConfigError(f"{error.filename or file}, line {error.lineno}: {error.msg}", "correct the file") from None
    except Exception as error:  # whatever the code of the user raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename) == Path(file).absolute()]
        where = f"{file}, line {lines[-1]}" if lines else file
        message = " ".join(str(error).split())
        raise ConfigError(
            f"{where}: {type(error).__name__}: {message}".removesuffix(": "), "correct the file"
        ) from None
