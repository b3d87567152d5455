"""Reading `--config=configs/calce.py:DATASET,stage=1|2` and `--config.FIELD=VALUE`."""

import difflib
import re
from pathlib import Path

from absl import flags

from calce_jax.config import field_names


def parse(argv: list[str]) -> list[str]:
    """Read the flags. What is wrong with the config is told in a line, where ml_collections shows a traceback."""
    names = [f"--config.{name}" for name in field_names()]
    for argument in argv[1:]:
        given, _, value = argument.partition("=")
        given = "--" + given.lstrip("-")
        if given == "--config" and value and not Path(file := value.partition(":")[0]).is_file():
            raise SystemExit(f"ConfigError: --config: there is no file {file}; give configs/calce.py:DATASET,stage=1|2")
        if given.startswith("--config.") and given not in names:
            near = difflib.get_close_matches(given, names, n=1)
            guess = f"did you mean {near[0]}?" if near else "calce_jax/config.py has all fields"
            raise SystemExit(f"ConfigError: {given}: no such field; {guess}")
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        *_, last = str(error).strip().splitlines()
        raise SystemExit(re.sub(r"^[\w.]*\.", "", last) if "Traceback" in str(error) else str(error)) from None
