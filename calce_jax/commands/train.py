"""Train one stage: `launch/train.py --config=configs/calce.py:shapes,stage=1 --workdir=DIR`.

The same command goes on where the workdir stands; SIGTERM stops it with a checkpoint. Several hosts can train together,
see `calce_jax.commands.flags.hosts`.
"""

from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from calce_jax.checkpoints.manager import CheckpointError
from calce_jax.commands.flags.config import parse
from calce_jax.commands.flags.hosts import join_from_flags
from calce_jax.config import ConfigError, validate
from calce_jax.distributed.multihost import HostError
from calce_jax.distributed.sharding import ShardingError
from calce_jax.input_pipeline.dataset import TablesError
from calce_jax.input_pipeline.feature_store import FeaturesError
from calce_jax.input_pipeline.rows import InputError
from calce_jax.text.tokenizers import TokenizerError
from calce_jax.training.loop import TrainingError
from calce_jax.training.run import train_run
from calce_jax.training.run_data import open_material

FAULTS = (
    ConfigError,
    HostError,
    TablesError,
    FeaturesError,
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
    # Orbax tells of every step it takes; --verbosity=0 shows that.
    logging.set_verbosity(logging.WARNING)
    app.run(main, flags_parser=parse)
