"""The config of a workdir: written when a run starts, and compared when it is resumed."""

import json
from pathlib import Path

from calce_jax.checkpoints.workdir import checkpoint_steps
from calce_jax.config import (
    ConfigError,
    RunConfig,
    diff,
    field_defaults,
    flatten,
    is_ignored_on_resume,
    read_config_json,
    to_dict,
    validate,
)
from calce_jax.distributed.multihost import is_primary
from calce_jax.storage.atomic_files import write_atomic
from calce_jax.training.console import print_lines


def resumed_config(config: RunConfig, workdir: Path) -> RunConfig:
    """Return the config with which a run goes on: fields newer than its config.json keep the values it had.

    Those are the defaults of the fields, which a preset of today may set otherwise. They are printed. The config of a
    workdir without a checkpoint is returned as it is.

    Raises:
      ConfigError: config.json is damaged.
    """
    if not (workdir / "config.json").exists() or not checkpoint_steps(workdir):
        return config
    saved, values = dict(flatten(read_config_json(workdir))), to_dict(config)
    current, kept = dict(flatten(values)), []
    for name, default in field_defaults().items():
        if name in saved or is_ignored_on_resume(name) or current[name] == default:
            continue
        *groups, field = name.split(".")
        group = values
        for part in groups:
            group = group[part]
        group[field] = default
        kept.append(f"{name}={default}")
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
      ConfigError: lists the fields that differ; or config.json is damaged.
    """
    path = Path(workdir) / "config.json"
    steps = checkpoint_steps(Path(workdir)) if path.exists() else []
    current = to_dict(config)
    if steps:
        saved = read_config_json(workdir)
        epochs = saved.get("schedule", {}).get("epochs", config.schedule.epochs)
        if steps_per_epoch and steps[-1] >= epochs * steps_per_epoch and config.schedule.epochs > epochs:
            saved["schedule"]["epochs"] = config.schedule.epochs
            print_lines([f"{workdir} was finished after {epochs} epochs and goes on to {config.schedule.epochs}"])
    if steps and (mismatches := diff(saved, current)):
        raise ConfigError(
            f"the workdir {workdir} belongs to another config",
            "choose another --workdir, or the values it was made with:\n  " + "\n  ".join(mismatches),
        )
    if is_primary():
        write_atomic(path, json.dumps(current, indent=2) + "\n")
