"""Writing weights as safetensors, one tensor at a time and atomically.

The writers of safetensors need all tensors in memory. Its format is a header of shapes and dtypes, then the data; see
https://github.com/huggingface/safetensors#format.
"""

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from calce_jax.checkpoints.checksums import header_with_checksums, tensor_checksum
from calce_jax.checkpoints.convert.reader import SAFETENSORS_DTYPES
from calce_jax.checkpoints.convert.state_dict import WEIGHT_DTYPES, LazyArray
from calce_jax.storage.atomic_files import atomic_replace_dir, atomic_write, write_error
from calce_jax.storage.disk_space import format_bytes, free_bytes

DTYPE_CODES = {dtype: code for code, dtype in SAFETENSORS_DTYPES.items()}
MAX_SHARD_BYTES = 5_000_000_000


def cast_floating(tensors: Mapping[str, LazyArray], dtype: np.dtype) -> dict[str, LazyArray]:
    """Return the tensors with the floating-point ones cast to `dtype`."""

    def cast(tensor: LazyArray) -> LazyArray:
        if tensor.dtype not in WEIGHT_DTYPES or tensor.dtype == dtype:
            return tensor
        return LazyArray(tensor.shape, dtype, lambda: tensor.read().astype(dtype))

    return {name: cast(tensor) for name, tensor in tensors.items()}


def write_safetensors(
    path: str | Path, tensors: Mapping[str, LazyArray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write one safetensors file atomically, with one tensor in memory at a time, and with checksums.

    Args:
      path: the file; an existing one is replaced.
      tensors: by name, in the order to write.
      metadata: of the file's header, which also gets the checksums.

    Raises:
      OSError: the file cannot be written; the message names it and the remedy. An existing file is left as it was.
    """
    # The header comes first, and its checksums are known last: it is written again, as long as before.
    checksums = dict.fromkeys(tensors, "0" * 8)
    check_free_space(path, sum(tensor.nbytes for tensor in tensors.values()))
    with atomic_write(path) as tmp_path, tmp_path.open("wb") as file:
        file.write(_encode_header(tensors, metadata, checksums))
        for name, tensor in tensors.items():
            array = np.ascontiguousarray(tensor.read())
            checksums[name] = tensor_checksum(array)
            file.write(array.reshape(-1).view(np.uint8).data)
        file.seek(0)
        file.write(_encode_header(tensors, metadata, checksums))


def _encode_header(
    tensors: Mapping[str, LazyArray], metadata: Mapping[str, str] | None, checksums: Mapping[str, str]
) -> bytes:
    """Return the header with its length before it."""
    header: dict[str, object] = {"__metadata__": header_with_checksums(metadata, checksums)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": DTYPE_CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header_bytes = json.dumps(header).encode()
    header_bytes += b" " * (-len(header_bytes) % 8)
    return len(header_bytes).to_bytes(8, "little") + header_bytes


def write_shards(
    folder: Path,
    tensors: Mapping[str, LazyArray],
    metadata: Mapping[str, str] | None = None,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write `model.safetensors` to a folder, or shards with an index, in the layout of the Hugging Face hub.

    Args:
      folder: an existing folder.
      tensors: by name, in the order to write.
      metadata: of the header of every file.
      max_shard_bytes: size of a shard, which only a single tensor may exceed.

    Raises:
      OSError: a file cannot be written; the caller removes the folder.
    """
    shards: list[dict[str, LazyArray]] = [{}]
    for name, tensor in tensors.items():
        if (
            shards[-1]
            and sum(shard_tensor.nbytes for shard_tensor in shards[-1].values()) + tensor.nbytes > max_shard_bytes
        ):
            shards.append({})
        shards[-1][name] = tensor
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", tensors, metadata)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        filename = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / filename, shard, metadata)
        weight_map |= dict.fromkeys(shard, filename)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


@contextmanager
def atomic_new_dir(path: str | Path, *, num_bytes: int = 0) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which takes its name unless the body raises.

    That there is room is checked first.

    Args:
      path: the folder; must not exist, or must be empty.
      num_bytes: free bytes to require.

    Raises:
      OSError: `path` is not empty, or cannot be written; the message names it and the remedy.
    """
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(errno.EEXIST, f"{path} exists already; remove it, or choose another place")
    check_free_space(path, num_bytes)
    with atomic_replace_dir(path) as tmp_dir:
        yield tmp_dir


def check_free_space(path: str | Path, num_bytes: int) -> None:
    """Check that a disk has room for a file or folder of `num_bytes`.

    Raises:
      OSError: ENOSPC, with the path, the sizes and the remedy.
    """
    free = free_bytes(Path(path).absolute().parent)
    if free < num_bytes:
        shortage = f"it needs {format_bytes(num_bytes)}, {format_bytes(free)} are free"
        raise write_error(path, OSError(errno.ENOSPC, shortage))
