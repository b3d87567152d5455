"""Lazy reading of weights files: safetensors, and PyTorch's .pth and .bin, single or in shards.

PyTorch's files are pickles, which can run any code. They are read by `torch.load(weights_only=True)`, which accepts
tensors and plain containers and refuses everything else; PyTorch is imported only for them.
"""

import json
import pickle
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from calce_jax.checkpoints.checksums import check_tensor, checksums_of_header
from calce_jax.checkpoints.convert.state_dict import LazyArray
from calce_jax.errors import UserError
from calce_jax.storage.extras import extra_remedy
from calce_jax.storage.text_files import read_text
from calce_jax.storage.verification import verification_enabled

SAFETENSORS_DTYPES: dict[str, np.dtype] = {
    code: np.dtype(kind)
    for code, kind in {
        "F64": np.float64,
        "F32": np.float32,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
        "I64": np.int64,
        "I32": np.int32,
        "I16": np.int16,
        "I8": np.int8,
        "U8": np.uint8,
        "BOOL": np.bool_,
    }.items()
}
# safetensors' reader for numpy does not support these dtypes, so their bytes are read directly.
FLOAT8 = (np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e5m2))
SHARD_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt")
# Weights in a folder of the Hugging Face hub, in order of preference: an index of shards, or a single file.
HF_FILENAMES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
# Pages of a memory-mapped file stay in memory while it is open, so it is reopened after so many bytes.
REOPEN_AFTER_BYTES = 1 << 30


class WeightsFileError(UserError):
    """A weights file is missing, damaged or unsafe; the message names it and the remedy."""


def open_tensors(path: str | Path) -> dict[str, LazyArray]:
    """Return the tensors of a weights file or folder by name; each is read on demand.

    Args:
      path: a `.safetensors`, `.pth`, `.pt` or `.bin` file; an `.index.json` with its shards beside it; or a folder of
        the Hugging Face hub. Of a PyTorch checkpoint with more than a state dict, the entry "model" is read.

    Raises:
      WeightsFileError: the file or a shard is missing, is damaged, or holds something else than tensors. Reading a
        tensor raises it too.
    """
    path = find_weights(path)
    if path.suffix == ".json":
        return _open_shards(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    if path.suffix in (".pth", ".pt", ".bin"):
        return _open_torch(path)
    raise WeightsFileError(f"{path}: must be a .safetensors, .pth, .pt, .bin or .index.json file, or a folder of one")


def find_weights(path: str | Path) -> Path:
    """Return the file of weights, of a file or of a folder of the Hugging Face hub.

    Raises:
      WeightsFileError: there is none.
    """
    path = Path(path)
    if path.is_dir():
        candidates = [path / name for name in HF_FILENAMES if (path / name).is_file()]
        if not candidates:
            raise WeightsFileError(f"{path} holds none of {', '.join(HF_FILENAMES)}", "give a file, or another folder")
        path = candidates[0]
    if not path.is_file():
        raise WeightsFileError(f"{path}: no such file", "get it, or give the path where it is")
    return path


def _open_shards(index: Path) -> dict[str, LazyArray]:
    try:
        weight_map: Mapping[str, str] = json.loads(read_text(index, "shards", "get it again"))["weight_map"]
        shards = sorted(set(weight_map.values()))
        # A path may lead to another folder, and an index to itself.
        if wrong := [name for name in shards if Path(name).name != name or Path(name).suffix not in SHARD_SUFFIXES]:
            raise ValueError(f"{wrong[0]!r:.60} is not a file of weights beside it")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsFileError(
            f"{index} is not an index of shards, or is damaged ({error!r})", "get it again"
        ) from error
    if missing := [name for name in shards if not (index.parent / name).is_file()]:
        raise WeightsFileError(
            f"{index.parent}: {len(missing)} of {len(shards)} shards are missing", f"get them: {', '.join(missing)}"
        )
    shard_tensors = {shard: open_tensors(index.parent / shard) for shard in shards}
    if absent_tensors := [
        f"{name} ({shard})" for name, shard in weight_map.items() if name not in shard_tensors[shard]
    ]:
        raise WeightsFileError(
            f"{index} names tensors that are not in their shards", f"get these again: {', '.join(absent_tensors)}"
        )
    return {name: shard_tensors[shard][name] for name, shard in weight_map.items()}


def _open_safetensors(path: Path) -> dict[str, LazyArray]:
    def open_file(file: Any) -> dict[str, LazyArray]:
        checksums = checksums_of_header(file.metadata()) if verification_enabled() else None
        return {name: lazy(name, file.get_slice(name), checksums) for name in file.keys()}  # noqa: SIM118

    def lazy(name: str, tensor_slice: Any, checksums: Mapping[str, str] | None) -> LazyArray:
        if tensor_slice.get_dtype() not in SAFETENSORS_DTYPES:
            raise WeightsFileError(f"{path}: {name} has the unsupported dtype {tensor_slice.get_dtype()}")
        dtype = SAFETENSORS_DTYPES[tensor_slice.get_dtype()]
        read = _read_bytes if dtype in FLOAT8 else _read_safetensors
        return LazyArray(tuple(tensor_slice.get_shape()), dtype, partial(_read_checked, read, path, name, checksums))

    return _with_safetensors(path, open_file)


def _read_checked(
    read: Callable[[Path, str, Any], np.ndarray], path: Path, name: str, checksums: Mapping[str, str] | None
) -> np.ndarray:
    def read_tensor(file: Any) -> np.ndarray:
        array = read(path, name, file)
        check_tensor(name, array, checksums)
        return array

    return _with_safetensors(path, read_tensor)


def _read_safetensors(_: Path, name: str, file: Any) -> np.ndarray:
    return file.get_tensor(name)


def _read_bytes(path: Path, name: str, _: Any) -> np.ndarray:
    # safetensors has validated the header on opening.
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(size))[name]
        start, end = entry["data_offsets"]
        file.seek(8 + size + start)
        return np.frombuffer(file.read(end - start), SAFETENSORS_DTYPES[entry["dtype"]]).reshape(entry["shape"])


def _with_safetensors(path: Path, fn: Callable[[Any], Any]) -> Any:
    """Call `fn` with an open file, and close it, which frees its memory-mapped pages."""
    try:
        with safe_open(path, framework="np") as file:
            return fn(file)
    except UserError:
        raise
    except (OSError, SafetensorError) as error:
        raise WeightsFileError(
            f"{path} cannot be read: it is truncated or damaged ({error})", "get it again"
        ) from error
    except ValueError as error:
        raise WeightsFileError(
            f"{path} is damaged ({error})", "get it again (--verify=off reads it as it is)"
        ) from error


def _open_torch(path: Path) -> dict[str, LazyArray]:
    file = _TorchFile(path)
    non_tensors = [str(name) for name, tensor in file.tensors.items() if not _is_tensor(tensor)]
    if non_tensors:
        raise WeightsFileError(f"{path} is not a state dict; these entries are not tensors: {', '.join(non_tensors)}")
    return {
        name: LazyArray(tuple(tensor.shape), _numpy_dtype(path, name, tensor), partial(file.read, name))
        for name, tensor in file.tensors.items()
    }


class _TorchFile:
    """A memory-mapped PyTorch file, reopened after every `REOPEN_AFTER_BYTES` read."""

    def __init__(self, path: Path):
        self._path, self._bytes_read = path, 0
        self.tensors = _load_torch(path)

    def read(self, name: str) -> np.ndarray:
        """Return one tensor as a view of the memory-mapped file."""
        if self._bytes_read > REOPEN_AFTER_BYTES:
            self.tensors, self._bytes_read = {}, 0
            self.tensors = _load_torch(self._path)
        tensor = self.tensors[name].detach()
        self._bytes_read += tensor.nbytes
        dtype = _numpy_dtype(self._path, name, tensor)
        if dtype.isbuiltin == 1:
            return tensor.numpy()
        # numpy itself has neither bfloat16 nor float8.
        return tensor.view(_import_torch().int16 if dtype.itemsize == 2 else _import_torch().int8).numpy().view(dtype)


def _load_torch(path: Path) -> dict[str, Any]:
    torch = _import_torch()
    try:
        # Only zip archives can be memory-mapped; the format before PyTorch 1.6 is none.
        with path.open("rb") as file:
            is_zip = file.read(2) == b"PK"
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise WeightsFileError(
            f"{path} was not loaded: it holds other objects than tensors, which could run code, or it is damaged",
            f"get it as safetensors, or save its state dict alone{_refused_global(error)}",
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise WeightsFileError(
            f"{path} cannot be read: it is truncated or damaged ({_first_line(error)})", "get it again"
        ) from error
    content = content.get("model", content) if isinstance(content, Mapping) else content
    if not isinstance(content, Mapping):
        raise WeightsFileError(f"{path} holds a {type(content).__name__}, not a state dict")
    return dict(content)


def _import_torch() -> Any:
    try:
        import torch  # noqa: PLC0415  (only for these files, and only if installed)
    except ImportError as error:
        raise WeightsFileError("reading PyTorch's files needs PyTorch", extra_remedy("convert")) from error
    return torch


def _is_tensor(value: Any) -> bool:
    return isinstance(value, _import_torch().Tensor)


def _numpy_dtype(path: Path, name: str, tensor: Any) -> np.dtype:
    try:
        return np.dtype(str(tensor.dtype).removeprefix("torch."))
    except TypeError as error:
        raise WeightsFileError(f"{path}: {name} has the unsupported dtype {tensor.dtype}") from error


def _refused_global(error: pickle.UnpicklingError) -> str:
    """Return the name of the object that torch refuses. Its text is left out: it says how to switch the refusal off."""
    match = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f" (it holds {match[1]})" if match else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
