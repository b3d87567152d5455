"""Targets of a conversion: base weights, a run, the original's checkpoint, Hugging Face's BLIP-2, an adapter."""

import errno
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from calce_jax.checkpoints.checksums import record_with_checksums
from calce_jax.checkpoints.convert.calce_pth import write_checkpoint
from calce_jax.checkpoints.convert.huggingface import write_adapter, write_blip2
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.checkpoints.convert.writer import atomic_new_dir, write_safetensors
from calce_jax.checkpoints.manager import TRAINABLE_PREFIX
from calce_jax.checkpoints.workdir import CHECKPOINT_DIR
from calce_jax.config import RunConfig, WeightsConfig, to_dict
from calce_jax.storage.provenance import file_hash, git_revision
from calce_jax.text.tokenizers import tokenizer_hashes


def write_base(path: Path, weights: Weights) -> None:
    """Write `weights.base` to a safetensors file for `config.weights.base`.

    Raises:
      OSError: the file cannot be written; no partial file is left.
    """
    write_safetensors(path, weights.base, {"converted from": weights.origin})


def write_run(path: Path, weights: Weights, run: RunConfig) -> None:
    """Write the workdir of a run: config, base weights, and the trained weights as checkpoint 0.

    `calce infer --workdir` opens it, and training starts from it by `config.weights.start`. An existing base file
    (`weights.file`) is referred to, not copied.

    Raises:
      OSError: the folder cannot be written; no partial folder is left.
    """
    arrays = [*weights.trained.values(), *(() if weights.file else weights.base.values())]
    with atomic_new_dir(path, num_bytes=sum(leaf.nbytes for leaf in arrays)) as tmp_dir:
        base_path = weights.file or tmp_dir / "base.safetensors"
        if weights.file is None:
            write_base(base_path, weights)
        configured_path = str(weights.file or path / "base.safetensors")
        config = to_dict(replace(run, weights=WeightsConfig(base=configured_path, start="")))
        (tmp_dir / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if weights.trained:
            record = {
                "config": config,
                "lora": {"rank": run.lora.rank, "alpha": run.lora.alpha},
                "base": {"file": configured_path, "sha256": file_hash(base_path)},
                "tokenizers": tokenizer_hashes(run),
                "start": {"kind": "converted", "path": weights.origin},
                "git": git_revision(),
                "jax": jax.__version__,
            }
            _save_trained(tmp_dir, {name: leaf.read() for name, leaf in weights.trainable_params().items()}, record)


# Keys as in `EXPORT_FORMATS`; called with the path, the weights, and the run that the model is for.
EXPORTERS: dict[str, Callable[[Path, Weights, RunConfig], None]] = {
    "base": lambda path, weights, _: write_base(path, weights),
    "orbax": write_run,
    "calce": lambda path, weights, _: write_checkpoint(path, weights),
    "hf": lambda path, weights, _: write_blip2(path, weights),
    "peft": lambda path, weights, run: write_adapter(path, weights, run.model.size),
}


def _save_trained(workdir: Path, trained: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> None:
    """Save checkpoint 0, without the states of the optimizer and the data iterator.

    Raises:
      OSError: it cannot be written.
    """
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "record": ocp.JsonCheckpointHandler()}
    leaves = {TRAINABLE_PREFIX + name: array for name, array in trained.items()}
    items = ocp.args.Composite(
        state=ocp.args.PyTreeSave(leaves),  # pyright: ignore[reportCallIssue]
        record=ocp.args.JsonSave(record_with_checksums(record, leaves)),  # pyright: ignore[reportCallIssue]
    )
    try:
        with ocp.CheckpointManager(workdir.absolute() / CHECKPOINT_DIR, item_handlers=handlers) as manager:
            manager.save(0, args=items)
    except Exception as error:  # Orbax raises many types, even for a full disk alone
        raise OSError(getattr(error, "errno", None) or errno.EIO, str(error).split("\n", 1)[0]) from error
