"""Load the models of both stages for searching, and keep their compiled programs."""

import warnings
from contextlib import suppress
from pathlib import Path

import jax

from calce_jax.config import Stage
from calce_jax.inference.trained_run import TrainedModel, load_base_model, load_trained_model, with_eval_batch
from calce_jax.presets.tiny import tiny_config
from calce_jax.search.calibration import calibration_path, read_calibration
from calce_jax.search.paths import find_stages
from calce_jax.search.searcher import Searcher
from calce_jax.storage.disk_cache import DiskCache, default_cache_dir
from calce_jax.storage.program_cache import ProgramCache

TINY_MODEL_NOTICE = (
    "The tiny model was made for videos of coloured shapes, such as its samples; for other videos its answers mean "
    "nothing."
)


def load_searcher(
    checkpoint: str | Path | None = None,
    *,
    cache: DiskCache | None = None,
    max_seconds: float | None = None,
    batch: int | None = None,
    programs: ProgramCache | None = None,
) -> Searcher:
    """Load the models of both stages for searching videos.

    Args:
      checkpoint, batch: see `open_stages`.
      cache: of key frames and features; by default of 10 GB at `default_cache_dir()`.
      max_seconds: see `Searcher`.
      programs: where compiled programs are kept for later processes; by default they are not.

    Raises:
      SearchError, ConfigError, CheckpointError, TokenizerError: see `open_stages`.
      UserError: its calibration is damaged.
    """
    notice = TINY_MODEL_NOTICE if checkpoint is None else ""
    calibration = read_calibration(calibration_path(checkpoint))
    cache = cache or DiskCache(default_cache_dir())
    return Searcher(
        open_stages(checkpoint, batch, programs), cache, max_seconds, notice, calibration, programs=programs
    )


def open_stages(
    checkpoint: str | Path | None = None, batch: int | None = None, programs: ProgramCache | None = None
) -> list[TrainedModel]:
    """Load the models of both stages on one device; they share one copy of equal frozen weights.

    Args:
      checkpoint: a folder with the workdirs `stage1` and `stage2`; by default the tiny model of the package, which was
        trained on the shapes dataset alone.
      batch: queries of a batch; by default `config.data.eval_batch` of each stage.
      programs: has the structure of the model, if it was opened before.

    Raises:
      SearchError: the folder has no such workdirs.
      ConfigError, CheckpointError, TokenizerError: a run cannot be loaded.
    """
    stages: list[TrainedModel] = []
    numbers: tuple[Stage, ...] = (1, 2)
    folders = (None, None) if checkpoint is None else find_stages(checkpoint)
    for stage, folder in zip(numbers, folders, strict=True):
        first = stages[0] if stages else None
        stages.append(
            load_base_model(with_eval_batch(tiny_config(stage), batch), programs, first)
            if folder is None
            else load_trained_model(folder, mesh="single", batch=batch, programs=programs, other_stage=first)
        )
    return stages


def enable_compilation_cache(folder: str | Path, max_bytes: int = 10**9) -> bool:
    """Let JAX cache compiled programs in `folder`/programs; above `max_bytes` the least recently used are deleted.

    A program that cannot be read or written is compiled again, without a warning for each. The programs that
    `calce_jax.storage.program_cache` keeps are not among them.

    Returns:
      Whether programs of either kind are there, of an earlier process.
    """
    programs = Path(folder).absolute() / "programs"
    # JAX writes a program, then its time of use. Where a full disk or a kill came in between, it would read the cut
    # program for ever, and write no other.
    for program in programs.glob("*-cache"):
        if not program.with_name(program.name.removesuffix("-cache") + "-atime").is_file():
            with suppress(OSError):
                program.unlink()
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry")
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_compilation_cache_max_size", max_bytes)
    return any(programs.glob("*-cache")) or any(Path(folder).glob("executables/*"))
