"""Conversion of weights from sources to a target, as `calce convert` does it."""

from pathlib import Path

import ml_dtypes
import numpy as np

from calce_jax.checkpoints.convert.formats import FormatError, parse_sources, parse_target
from calce_jax.checkpoints.convert.reader import find_weights
from calce_jax.checkpoints.convert.sources import open_sources, open_whisper_weights
from calce_jax.checkpoints.convert.targets import EXPORTERS
from calce_jax.checkpoints.convert.writer import cast_floating, write_safetensors
from calce_jax.checkpoints.restore import calce_config
from calce_jax.config import RunConfig, read_config
from calce_jax.models.calce_sizes import CalceConfig
from calce_jax.text.tokenizers import open_tokenizers

NUMPY_DTYPES = {
    "as stored": None,
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


def convert(source: str, target: str, preset: RunConfig, *, dtype: str = "as stored") -> str:
    """Convert weights.

    Args:
      source: "FORMAT:PATH,FORMAT:PATH...", see `formats.SOURCE_FORMATS`.
      target: "FORMAT:PATH", see `formats.EXPORT_FORMATS`.
      preset: the run that the model is for; a run among the sources takes its place.
      dtype: of the frozen weights, one of `formats.DTYPES`; trainable weights keep their dtype, or are float32.

    Returns:
      A summary of one line: path, size, and sources.

    Raises:
      UserError: the arguments, a file or its weights are wrong; the message names them.
      CheckpointError: a run among the sources is damaged, or of another size.
      OSError: the target cannot be written; no partial output is left.
    """
    sources, (export_format, path) = parse_sources(source), parse_target(target)
    if any(source_format == "whisper" for source_format, _ in sources):
        return _convert_whisper(source, target, NUMPY_DTYPES[dtype])
    for source_format, source_path in sources:  # first, as the model of the tiny size needs tokenizers
        if source_format != "orbax":
            find_weights(source_path)
    runs = [read_config(workdir) for source_format, workdir in sources if source_format == "orbax"]
    run = runs[-1] if runs else preset
    weights = open_sources(sources, model_config_of(run), seed=run.seed)
    if (target_dtype := NUMPY_DTYPES[dtype]) is not None:
        weights = weights.cast_frozen(target_dtype)
    EXPORTERS[export_format](path, weights, run)
    omitted_note = "; adapters are not included" if weights.trained and export_format == "base" else ""
    return f"{path}: {_size(path) / 1e6:.1f} MB from {weights.origin}{omitted_note}"


def model_config_of(run: RunConfig) -> CalceConfig:
    """Return the sizes of a run's model; only the tiny size depends on the tokenizers, and opens them."""
    if run.model.size == "tiny":
        tokenizers = open_tokenizers(run)
        return calce_config(run, t5_vocab=len(tokenizers.t5), bert_vocab=len(tokenizers.bert))
    return calce_config(run, t5_vocab=0, bert_vocab=0)


def _convert_whisper(source: str, target: str, dtype: np.dtype | None) -> str:
    """Convert a Hugging Face Whisper to safetensors with Flax names, and return a summary of one line.

    Raises:
      FormatError: there are other sources, or the target is not base:FILE.
    """
    (_, folder), *others = parse_sources(source)
    export_format, path = parse_target(target)
    if others or export_format != "base":
        raise FormatError(
            f"--source=whisper:PATH must be the only source, with --target=base:FILE; got {source}, {target}"
        )
    weights = open_whisper_weights(folder)
    write_safetensors(path, weights if dtype is None else cast_floating(weights, dtype), {"converted from": source})
    return f"{path}: {_size(path) / 1e6:.1f} MB from {source}"


def _size(path: Path) -> int:
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
