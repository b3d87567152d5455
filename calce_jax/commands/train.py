"""Train one stage: `calce train --config=shapes,stage=1 --workdir=DIR`.

Run the same command again to resume from the last checkpoint in the workdir; Ctrl-C and SIGTERM save one and stop.
--config is a preset, or a file such as configs/calce.py; any field can be set, for example --config.schedule.epochs=20.
Several hosts can train together, see --coordinator.
"""

from pathlib import Path

from absl import flags

from calce_jax.commands.flags.config import define_config, parse_config, validate_config
from calce_jax.commands.flags.hosts import HostFlags
from calce_jax.commands.flags.paths import check_folder
from calce_jax.commands.flags.profile import define_profile
from calce_jax.commands.flags.verify import VerifyFlag
from calce_jax.commands.runner import no_arguments

FLAGS = flags.FlagValues()
CONFIG = define_config(FLAGS)
WORKDIR = flags.DEFINE_string("workdir", None, "folder of checkpoints, metrics and the config", flag_values=FLAGS)
PROFILE = define_profile(FLAGS)
HOST_FLAGS = HostFlags(FLAGS)
VERIFY_FLAG = VerifyFlag(FLAGS)
flags.mark_flags_as_required(["config", "workdir"], flag_values=FLAGS)
parse = parse_config


def main(argv: list[str]) -> None:
    """Validate the config, join the other hosts, train, and print what to do next."""
    no_arguments(argv, "set fields of the config with --config.FIELD=VALUE")
    VERIFY_FLAG.apply()
    check_folder("--workdir=", str(WORKDIR.value))

    config = validate_config(CONFIG)
    with HOST_FLAGS.joined():
        from calce_jax.input_pipeline.buffer_pool import retain_freed_memory
        from calce_jax.training.console import next_lines, print_lines
        from calce_jax.training.run import train_run
        from calce_jax.training.run_data import open_run_data
        from calce_jax.training.workdir_config import resumed_config

        retain_freed_memory()
        workdir = Path(str(WORKDIR.value))
        config = resumed_config(config, workdir)
        profile_steps = int(PROFILE.value)
        train_run(config, workdir, open_run_data(config), stop_on_signals=True, profile_steps=profile_steps)
        print_lines(next_lines(config, workdir))
