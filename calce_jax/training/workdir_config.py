"""The config of a workdir: written when a run starts, and compared when it is resumed."""

import json
from pathlib import Path

from calce_jax.checkpoints.workdir import checkpoint_steps
from calce_jax.config import (
    RESTORE_CONFIG,
    ConfigError,
    RunConfig,
    diff,
    field_defaults,
    flatten,
    read_config_json,
    to_dict,
    validate,
)
from calce_jax.config_compat import SET_BY_NEWER_PRESETS
from calce_jax.distributed.multihost import is_primary
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.training.console import print_lines


def resumed_config(config: RunConfig, workdir: Path) -> RunConfig:
    """Return the config with which a run goes on.

    Fields that are newer than its config.json and that presets of today set (`SET_BY_NEWER_PRESETS`) keep the values it
    had, their defaults; they are printed. The config of a workdir without a checkpoint is returned as it is.

    Raises:
      ConfigError: config.json is damaged.
    """
    if not (workdir / "config.json").exists() or not checkpoint_steps(workdir):
        return config
    saved, values, defaults = dict(flatten(read_config_json(workdir))), to_dict(config), field_defaults()
    kept = []
    for name in SET_BY_NEWER_PRESETS:
        group, field = name.split(".")
        if name not in saved and values[group][field] != defaults[name]:
            values[group][field] = defaults[name]
            kept.append(f"{name}={defaults[name]}")
    if kept:
        print_lines([f"{workdir} is of an earlier version and keeps {', '.join(kept)}"])
    return validate(values)


def init_workdir(workdir: Path, config: RunConfig, steps_per_epoch: int = 0) -> None:
    """Write config.json; a workdir with checkpoints must have the same config, except for `IGNORED_ON_RESUME`.

    A run that is finished goes on if `schedule.epochs` is raised: the learning rate follows the longer schedule.

    A workdir without a checkpoint holds only what a start that failed has left, and takes any config.

    A config.json that an earlier version wrote is compared, and rewritten, under today's names.

    Args:
      workdir: of the run.
      config: of the run.
      steps_per_epoch: micro-steps, from which it follows whether the run is finished; 0 if that is unknown.

    Raises:
      ConfigError: lists the fields that differ; or config.json is damaged, or missing beside checkpoints.
    """
    path, current = Path(workdir) / "config.json", to_dict(config)
    if steps := checkpoint_steps(Path(workdir)):
        if not path.exists():
            raise ConfigError(
                f"{workdir} has checkpoints and no config.json, so it is not known what they were trained with",
                f"{RESTORE_CONFIG}, or choose another --workdir",
            )
        saved = read_config_json(workdir)
        present = dict(flatten(saved))
        epochs = present.get("schedule.epochs")
        if type(epochs) is int and 0 < epochs < config.schedule.epochs and 0 < epochs * steps_per_epoch <= steps[-1]:
            saved["schedule"]["epochs"] = config.schedule.epochs
            print_lines([f"{workdir} was finished after {epochs} epochs and goes on to {config.schedule.epochs}"])
        if mismatches := diff(saved, current):
            raise ConfigError(
                f"the workdir {workdir} belongs to another config",
                "choose another --workdir, or the values it was made with:\n  " + "\n  ".join(mismatches),
            )
        # Fields that `resumed_config` keeps stay out, so that it finds them missing at the next start too.
        for name in SET_BY_NEWER_PRESETS:
            group, field = name.split(".")
            if name not in present:
                del current[group][field]
    if is_primary():
        write_atomic(path, json.dumps(current, indent=2) + "\n")
