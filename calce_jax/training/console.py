"""What a run says on stderr: what it trains on which devices, where the result is, what to do next.

Only the first host prints.
"""

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

from jax.sharding import Mesh

from calce_jax.checkpoints.manager import Checkpoints
from calce_jax.checkpoints.workdir import BEST_METRIC
from calce_jax.config import RunConfig
from calce_jax.distributed.multihost import is_primary
from calce_jax.training.loop import TrainSchedule


def print_lines(lines: Iterable[str]) -> None:
    """Print lines on stderr, on the first host."""
    if is_primary():
        print("\n".join(lines), file=sys.stderr, flush=True)


def model_lines(config: RunConfig, mesh: Mesh, num_trainable: int, num_frozen: int) -> list[str]:
    """Return what is trained, and on which devices.

    Args:
      config: of the run.
      mesh: the devices of all hosts.
      num_trainable: number of trainable parameters.
      num_frozen: number of frozen parameters.
    """
    kinds = sorted({device.device_kind for device in mesh.devices.flat})
    noun = "device" if mesh.devices.size == 1 else "devices"
    by_rewards = f", by rewards of {config.reward.rollouts} answers a query" if config.objective == "reward" else ""
    return [
        f"stage {config.stage} of {config.data.dataset} at the size {config.model.size}{by_rewards}, on "
        f"{mesh.devices.size} {noun} ({', '.join(kinds)})",
        f"{num_trainable:,} parameters are trained, {num_frozen:,} are frozen",
    ]


def schedule_lines(
    config: RunConfig, workdir: Path, schedule: TrainSchedule, step: int, *, is_finished: bool
) -> list[str]:
    """Return how long the run is and where it begins; or that nothing is left to do.

    Args:
      config: of the run.
      workdir: of the run.
      schedule: its length.
      step: micro-steps that were made before.
      is_finished: whether no more will be made, and the last one is evaluated.
    """
    if is_finished and step < schedule.total_steps:
        return []  # `train` says why
    if is_finished:
        return [
            f"{workdir} is finished at step {schedule.total_steps}; to go on, raise "
            f"--config.schedule.epochs={schedule.epochs}; to train otherwise, choose another --workdir"
        ]
    return [
        f"{schedule.epochs} epochs of {schedule.steps_per_epoch} steps, {schedule.total_steps} in all, with "
        f"{config.data.batch} queries each" + (f"; {step} are made" if step else ""),
        "compiling the training step; this takes a while once",
    ]


def result_lines(config: RunConfig, checkpoints: Checkpoints) -> list[str]:
    """Return where the best checkpoint is and its score; of a run without a score, where the latest is.

    All hosts must call this, since they read checkpoints together.
    """
    if (best := checkpoints.best_step_and_metric) is not None:
        step, score = best
        return [
            f"the best checkpoint is {checkpoints.folder / str(step)}, {BEST_METRIC} {score:.2f} on "
            f"{config.data.eval_split}"
            + ("" if score > 0 else ": nothing right yet; train with more videos, or longer (--config.schedule.epochs)")
        ]
    latest = checkpoints.latest_step
    return [] if latest is None else [f"the latest checkpoint is {checkpoints.folder / str(latest)}; none has a score"]


def next_lines(config: RunConfig, workdir: Path) -> list[str]:
    """Return the commands that show a run and that predict with it."""
    folder, split = shlex.quote(str(workdir)), config.data.eval_split
    out = shlex.quote(str(workdir / f"{split}.jsonl"))
    return [
        f"to watch it: tensorboard --logdir={folder}",
        f"to predict with it: calce infer --workdir={folder} --split={split} --out={out}",
    ]
