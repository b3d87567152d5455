"""Files of tensors, written one tensor after the other, and there as a whole or not at all.

safetensors' own writers want all tensors in memory. The format is a header, which needs only shapes and dtypes, and
then the numbers; see https://github.com/huggingface/safetensors#format.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from calce_jax.checkpoints.convert.reader import DTYPES
from calce_jax.checkpoints.convert.state_dict import WEIGHT_DTYPES, Lazy
from calce_jax.storage.atomic_files import replacing
from calce_jax.storage.disk_space import free_bytes

CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000


def cast(tensors: Mapping[str, Lazy], dtype: np.dtype) -> dict[str, Lazy]:
    """Return the same tensors, those of floating point in another dtype."""

    def put(tensor: Lazy) -> Lazy:
        if tensor.dtype not in WEIGHT_DTYPES or tensor.dtype == dtype:
            return tensor
        return Lazy(tensor.shape, dtype, lambda: tensor.read().astype(dtype))

    return {name: put(tensor) for name, tensor in tensors.items()}


def write_safetensors(path: str | Path, tensors: Mapping[str, Lazy], about: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file; only one tensor is in memory at a time.

    Args:
      path: the file; one that exists is replaced.
      tensors: in the order they are written.
      about: strings to keep in the file's header.

    Raises:
      OSError: it cannot be written, with the file and the remedy; nothing of it is left.
    """
    header: dict[str, object] = {"__metadata__": dict(about)} if about else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    check_room(path, end)
    with replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            array = np.ascontiguousarray(tensor.read())
            file.write(array.reshape(-1).view(np.uint8).data)


def write_shards(
    folder: Path,
    tensors: Mapping[str, Lazy],
    about: Mapping[str, str] | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `model.safetensors` into a folder, or the shards of one with their index, as the Hugging Face hub has them.

    Raises:
      OSError: something cannot be written; the folder is then the caller's to remove.
    """
    shards: list[dict[str, Lazy]] = [{}]
    for name, tensor in tensors.items():
        if shards[-1] and sum(each.nbytes for each in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", tensors, about)
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / file, shard, about)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def whole_folder(path: str | Path, *, needed: int = 0) -> Iterator[Path]:
    """Give a folder to write into; it gets its name if all goes well, and else is removed.

    Args:
      path: the folder, which must not exist or be empty.
      needed: bytes that must be free before anything is written.

    Raises:
      OSError: there is something already, or it cannot be written; with the folder and the remedy.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.part")
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, f"{path} exists already; remove it, or choose another place")
    check_room(path, needed)
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
        part.mkdir(parents=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        if "make room" in str(error.strerror):
            raise  # the file that failed has said so itself
        raise OSError(
            error.errno, f"cannot write {path} ({error.strerror}); make room, or choose another place"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_room(path: str | Path, needed: int) -> None:
    """Raise an OSError, with the remedy, if fewer bytes are free than a file or folder will take."""
    free = free_bytes(Path(path).absolute().parent)
    if free < needed:
        short = f"it takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free"
        raise OSError(errno.ENOSPC, f"cannot write {path} ({short}); make room, or choose another place")
