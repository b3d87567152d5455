"""What a workdir holds, and where a run starts from; without Orbax, which takes long to import."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from calce_jax.checkpoints.params_file import CheckpointError
from calce_jax.config import packaged_path

CHECKPOINT_DIR = "checkpoints"
TRAINED_FILE = "trained.safetensors"  # in place of checkpoints, see `calce_jax.checkpoints.model_folder`
BEST_METRIC = "R1_avg"


@dataclass(frozen=True)
class InitSource:
    """Where the initial trainables come from.

    Fields:
      kind: "resumed", the latest checkpoint of the workdir itself; "other_run", the best of another workdir, which
        metadata of earlier versions calls "given"; "base", the base weights; "fresh", random initialisation.
      path: the workdir or the file; None for "fresh".
    """

    kind: Literal["resumed", "other_run", "base", "fresh"]
    path: Path | None


def resolve_init(workdir: Path, other_run: str = "", base: str = "") -> InitSource:
    """Choose the initial trainables: this run's checkpoint, else another run's, else base weights, else random ones.

    Args:
      workdir: of this run.
      other_run: workdir of another run, or "".
      base: safetensors file of the whole model, or "". Frozen weights always come from it.

    Raises:
      CheckpointError: `other_run` has no checkpoint, or there is no file `base`.
    """
    if checkpoint_steps(workdir):
        return InitSource("resumed", workdir)
    if other_run:
        check_other_run(Path(other_run))
        return InitSource("other_run", Path(other_run))
    if base:
        check_base_file(base)
        return InitSource("base", packaged_path(base))
    return InitSource("fresh", None)


def check_other_run(workdir: Path) -> None:
    """Check that the run which a config starts from has trained weights.

    Raises:
      CheckpointError: it has none.
    """
    if not checkpoint_steps(workdir) and not (workdir / TRAINED_FILE).is_file():
        raise CheckpointError(
            f"config.weights.start: no checkpoint in {workdir / CHECKPOINT_DIR}",
            "give the workdir of a trained run (--config.weights.start=DIR)",
        )


def check_base_file(base: str) -> None:
    """Check that the base weights of a config are there.

    Raises:
      CheckpointError: there is no such file.
    """
    if base and not packaged_path(base).is_file():
        raise CheckpointError(
            f"config.weights.base: no file {base}",
            "fetch them (`calce fetch --what=blip2` and `--what=bert`) and convert them (`calce convert`, see "
            "docs/conversion.md), or train the small model (--config=...,size=tiny), or without them "
            "(--config.weights.base=)",
        )


def checkpoint_steps(workdir: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a workdir, ascending."""
    folder = Path(workdir) / CHECKPOINT_DIR
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())
