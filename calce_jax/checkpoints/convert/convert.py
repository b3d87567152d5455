"""A conversion from end to end."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from calce_jax.checkpoints.convert.sources import open_sources, open_whisper, parse_sources
from calce_jax.checkpoints.convert.targets import TARGETS, parse_target
from calce_jax.checkpoints.convert.writer import cast, write_safetensors
from calce_jax.checkpoints.restore import calce_config
from calce_jax.config import RunConfig, read_config, validate
from calce_jax.models.calce import CalceConfig
from calce_jax.models.lora import LoraConfig
from calce_jax.text.tokenizers import open_tokenizers

DTYPES = {
    "as stored": None,
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def convert(source: str, target: str, config: Any, *, dtype: str = "as stored") -> str:
    """Convert weights.

    Args:
      source: "KIND:PATH,KIND:PATH...", see `sources.KINDS`.
      target: "KIND:PATH", see `targets.TARGETS`.
      config: plain values of the run that the model is for; a run among the sources brings its own.
      dtype: of the frozen weights, one of `DTYPES`; what is trained is float32 or as the sources have it.

    Returns:
      A line that says what was written.

    Raises:
      ValueError: the arguments, a file or its weights are wrong; the message names them.
      CheckpointError: a run among the sources is damaged, or of another size.
      OSError: the target cannot be written; nothing of it is left.
    """
    sources, (kind, path) = parse_sources(source), parse_target(target)
    if any(what == "whisper" for what, _ in sources):
        return _convert_whisper(source, target, DTYPES[dtype])
    runs = [read_config(where) for what, where in sources if what == "orbax"]
    run = runs[-1] if runs else validate(config)
    weights = open_sources(sources, sizes_of(run), seed=run.seed)
    if (wanted := DTYPES[dtype]) is not None:
        weights = weights.in_dtype(wanted)
    kind.write(path, weights, run)
    left_out = "; adapters are left out" if weights.trained and kind is TARGETS["base"] else ""
    return f"{path}: {_size(path) / 1e6:.1f} MB from {weights.origin}{left_out}"


def sizes_of(run: RunConfig) -> CalceConfig:
    """Return the sizes of a run's model; tokenizers are opened only where it is as large as they are."""
    if run.model.size == "tiny":
        return calce_config(run, open_tokenizers(run))
    lora = LoraConfig(rank=run.lora.rank, alpha=run.lora.alpha, drop=run.lora.dropout)
    return CalceConfig.named(run.model.size, lora, run.model.compute_dtype, t5_vocab=0, bert_vocab=0)


def _convert_whisper(source: str, target: str, dtype: np.dtype | None) -> str:
    """Write a Whisper under the names that its parameters have here."""
    (_, folder), *others = parse_sources(source)
    kind, path = parse_target(target)
    if others or kind is not TARGETS["base"]:
        raise ValueError(f"whisper:PATH goes alone and to base:FILE, not {source} to {target}")
    weights = open_whisper(folder)
    write_safetensors(path, weights if dtype is None else cast(weights, dtype), {"converted from": source})
    return f"{path}: {_size(path) / 1e6:.1f} MB from {source}"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
