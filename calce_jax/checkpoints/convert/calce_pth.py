"""Writing checkpoints that the original CALCE loads."""

import errno
from pathlib import Path
from typing import Any

import numpy as np

from calce_jax.checkpoints.convert import calce, qformer, t5
from calce_jax.checkpoints.convert.mapping import mapping_rows
from calce_jax.checkpoints.convert.reader import WeightsFileError
from calce_jax.checkpoints.convert.state_dict import LazyArray, lazy_state_dict
from calce_jax.checkpoints.convert.weights import FLOAT32, Weights, as_lazy
from calce_jax.checkpoints.convert.writer import cast_floating, check_free_space
from calce_jax.storage.atomic_files import atomic_write
from calce_jax.storage.extras import extra_remedy


def checkpoint_state_dict(weights: Weights) -> dict[str, LazyArray]:
    """Return the entry "model" of a checkpoint of the original, with its names, shapes and dtypes.

    The original saves the trained weights and, by oversight, some frozen weights under their tied names and a buffer of
    position ids; all are included. The bias of the Q-Former's unused word prediction head, which has no Flax parameter,
    is 0.

    Raises:
      ConversionError: the weights have no adapters.
    """
    frozen = cast_floating({name: weights.base[name] for name in ("qformer/words", "t5/shared/embedding")}, FLOAT32)
    position_ids = np.arange(weights.model_config.qformer.max_positions)[None]
    return {
        **lazy_state_dict(mapping_rows(calce.checkpoint_mapping()), weights.trainable_params()),
        **{f"{calce.PEFT_PREFIX}{tower}.embed_tokens.weight": frozen["t5/shared/embedding"] for tower in t5.TOWERS},
        f"{qformer.BERT_PREFIX}.embeddings.position_ids": as_lazy(position_ids),
        "Qformer.cls.predictions.decoder.weight": frozen["qformer/words"],
        "Qformer.cls.predictions.decoder.bias": as_lazy(np.zeros(weights.model_config.qformer.vocab, FLOAT32)),
    }


def write_checkpoint(path: Path, weights: Weights) -> None:
    """Write a `.pth` that the original loads for inference or to start a stage from; it has no optimizer state.

    Raises:
      ConversionError: the weights have no adapters.
      WeightsFileError: PyTorch is not installed.
      OSError: the file cannot be written; no partial file is left.
    """
    tensors = checkpoint_state_dict(weights)
    try:
        import torch  # noqa: PLC0415  (only for this target, and only if installed)
    except ImportError as error:
        raise WeightsFileError("writing a .pth needs PyTorch", extra_remedy("convert")) from error
    torch_tensors: dict[
        int, Any
    ] = {}  # by the id of the lazy array: tied names share one tensor, as in the original's files
    for lazy in tensors.values():
        if id(lazy) not in torch_tensors:
            torch_tensors[id(lazy)] = torch.from_numpy(np.array(lazy.read()))
    model = {name: torch_tensors[id(lazy)] for name, lazy in tensors.items()}
    check_free_space(path, sum(tensor.nbytes for tensor in torch_tensors.values()))
    with atomic_write(path) as tmp_path:
        try:
            torch.save({"model": model}, tmp_path)
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error).split("\n", 1)[0]) from error
