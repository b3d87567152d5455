"""The downloads of a published model converted to a model folder, one weight in memory at a time."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from calce_jax.checkpoints.convert.convert import NUMPY_DTYPES, model_config_of
from calce_jax.checkpoints.convert.huggingface import read_blip2_size
from calce_jax.checkpoints.convert.sources import open_sources
from calce_jax.checkpoints.convert.writer import write_safetensors
from calce_jax.checkpoints.model_folder import BASE_FILE, CONFIG_FILE, STAGES, write_stage, write_tokenizers
from calce_jax.config import RunConfig
from calce_jax.datasets.sources import HubRepo, PublishedModel
from calce_jax.presets.runs import get_preset
from calce_jax.storage.provenance import git_revision


def convert_downloads(model: PublishedModel, downloads: Path, folder: Path, log: Callable[[str], None] = print) -> None:
    """Convert BLIP-2, BERT, T5's tokenizer and CALCE's checkpoints to a model folder.

    Each file is written under another name and renamed. Those that an interrupted call has written are kept.

    Args:
      model: what was downloaded.
      downloads: the folders "blip2", "bert" and "calce".
      folder: of the model.
      log: called with a line for each step.

    Raises:
      WeightsFileError, ConversionError, TokenizerError, CheckpointError: a file is damaged, or another one than it
        should be.
      OSError: a file cannot be written; names it.
    """
    size = read_blip2_size(downloads / "blip2")
    for leftover in folder.rglob("*.part"):  # of a process that was killed
        leftover.unlink()
    write_tokenizers(folder, {"t5": downloads / "blip2/t5", "bert": downloads / "bert"})
    runs = [_with_tokenizers(get_preset(f"{model.run},stage={n},size={size}"), folder) for n in (1, 2)]
    base = folder / BASE_FILE
    if not base.is_file():
        run = runs[0]
        sources = [("hf", downloads / "blip2"), ("bert", downloads / "bert")]
        # Frozen weights are loaded in this dtype anyway.
        dtype = NUMPY_DTYPES[run.model.frozen_dtype]
        assert dtype is not None
        weights = open_sources(sources, model_config_of(run), seed=run.seed).cast_frozen(dtype)
        parts = [part for publication in model.downloads.values() for part in publication.parts]
        origin = ", ".join(part.repo for part in parts if isinstance(part, HubRepo))
        write_safetensors(base, weights.base, {"converted from": origin})
        log(f"wrote {base}")
    for stage, run in zip(STAGES, runs, strict=True):
        if (folder / stage / CONFIG_FILE).is_file():
            continue
        checkpoint = downloads / "calce" / f"{stage}.pth"
        weights = open_sources([("base", base), ("calce", checkpoint)], model_config_of(run), seed=run.seed)
        start = {"kind": "converted", "path": f"calce:{checkpoint.name}"}
        write_stage(folder / stage, weights, run, {"start": start, "git": git_revision(), "jax": jax.__version__})
        log(f"wrote {folder / stage}")


def _with_tokenizers(run: RunConfig, folder: Path) -> RunConfig:
    return replace(run, text=replace(run.text, t5_tokenizer=str(folder / "t5"), bert_tokenizer=str(folder / "bert")))
