"""The original's checkpoint, written so that a model trained here runs there."""

import errno
from pathlib import Path
from typing import Any

import numpy as np

from calce_jax.checkpoints.convert import calce, qformer, t5
from calce_jax.checkpoints.convert.mapping import rows_of
from calce_jax.checkpoints.convert.reader import WeightsFileError
from calce_jax.checkpoints.convert.state_dict import Lazy, torch_parameters
from calce_jax.checkpoints.convert.weights import FLOAT32, Weights, held
from calce_jax.checkpoints.convert.writer import cast, check_room
from calce_jax.storage.atomic_files import replacing


def checkpoint_tensors(weights: Weights) -> dict[str, Lazy]:
    """Return what is under "model" in a checkpoint of the original: its names, shapes and dtypes.

    The original saves what it trains, and by oversight some frozen weights under their second names and a counter. All
    of them are here. The bias of the head that predicts words, which nothing uses and no model here has, is 0.

    Raises:
      ConversionError: the sources hold no adapters.
    """
    frozen = cast({name: weights.base[name] for name in ("qformer/words", "t5/shared/embedding")}, FLOAT32)
    counter = np.arange(weights.sizes.qformer.positions)[None]
    return {
        **torch_parameters(rows_of(calce.checkpoint()), weights.all_trained()),
        **{f"{calce.PEFT}{tower}.embed_tokens.weight": frozen["t5/shared/embedding"] for tower in t5.TOWERS},
        f"{qformer.BERT}.embeddings.position_ids": held(counter),
        "Qformer.cls.predictions.decoder.weight": frozen["qformer/words"],
        "Qformer.cls.predictions.decoder.bias": held(np.zeros(weights.sizes.qformer.vocab, FLOAT32)),
    }


def write_checkpoint(path: Path, weights: Weights) -> None:
    """Write a `.pth` that the original loads for inference or as the start of a stage; it has no optimizer's state.

    Raises:
      ConversionError: the sources hold no adapters.
      WeightsFileError: PyTorch is missing.
      OSError: it cannot be written; nothing of it is left.
    """
    tensors = checkpoint_tensors(weights)
    try:
        import torch  # noqa: PLC0415  (only for this target, and only if installed)
    except ImportError as error:
        raise WeightsFileError("a .pth is written by PyTorch: pip install 'calce_jax[convert]'") from error
    read: dict[int, Any] = {}  # second names share their numbers, as in the original's files
    for lazy in tensors.values():
        if id(lazy) not in read:
            read[id(lazy)] = torch.from_numpy(np.array(lazy.read()))
    model = {name: read[id(lazy)] for name, lazy in tensors.items()}
    check_room(path, sum(tensor.nbytes for tensor in read.values()))
    with replacing(path) as part:
        try:
            torch.save({"model": model}, part)
        except RuntimeError as error:
            raise OSError(errno.EIO, str(error).split("\n", 1)[0]) from error
