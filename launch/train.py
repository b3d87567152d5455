"""Train one stage: `launch/train.py --config=configs/calce.py:shapes,stage=1 --workdir=DIR`.

The same command goes on where the workdir stands; SIGTERM stops it with a checkpoint. Several hosts can train together,
see `launch.hosts`.
"""

import difflib
import re
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from calce_jax.checkpoints import CheckpointError
from calce_jax.hosts import HostError
from calce_jax.input_pipeline.rows import InputError
from calce_jax.sharding import ShardingError
from calce_jax.tokenizers import TokenizerError
from calce_jax.training.config import ConfigError, field_names, validate
from calce_jax.training.loop import TrainingError
from calce_jax.training.material import open_material
from calce_jax.training.run import train_run
from data.builder import TablesError
from launch.hosts import join_from_flags

FAULTS = (
    ConfigError,
    HostError,
    TablesError,
    TokenizerError,
    InputError,
    CheckpointError,
    ShardingError,
    TrainingError,
    OSError,
)

CONFIG = config_flags.DEFINE_config_file("config", None, "configs/calce.py:DATASET,stage=1|2", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "where checkpoints, metrics and the config go")
flags.mark_flags_as_required(["config", "workdir"])


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
            guess = f"did you mean {near[0]}?" if near else "calce_jax/training/config.py has all fields"
            raise SystemExit(f"ConfigError: {given}: no such field; {guess}")
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        *_, last = str(error).strip().splitlines()
        raise SystemExit(re.sub(r"^[\w.]*\.", "", last) if "Traceback" in str(error) else str(error)) from None


def main(argv: list[str]) -> None:
    """Check the config, then train."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown argument: {argv[1]}; fields are set with --config.FIELD=VALUE")
    try:
        config = validate(CONFIG.value)
        join_from_flags()
        train_run(config, Path(str(WORKDIR.value)), open_material(config))
    except FAULTS as error:
        logging.debug("where it happened", exc_info=True)
        raise SystemExit(f"{type(error).__name__}: {error}") from None


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
