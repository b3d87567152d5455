"""Parameters in one safetensors file, with a checksum of each tensor; files without checksums are read as they are."""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from calce_jax.checkpoints.checksums import check_tensor, checksums_of_header, header_with_checksums, tensor_checksum
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.errors import UserError
from calce_jax.storage.atomic_files import atomic_write
from calce_jax.storage.verification import verification_enabled

VERIFY_OFF = "--verify=off reads it as it is"
RECORD_KEY = "record"  # of the header: the metadata of a run as JSON


class CheckpointError(UserError):
    """A checkpoint or a file of weights cannot be written or read; the message names it and the remedy."""


def save_params(path: Path, params: Any, metadata: Mapping[str, str] | None = None) -> None:
    """Write parameters to one safetensors file, under their `named_leaves` names and in their own dtypes.

    Args:
      path: the file; it is written under another name, then renamed.
      params: a pytree of arrays.
      metadata: strings for the header of the file.

    Raises:
      CheckpointError: the file cannot be written.
    """
    # safetensors writes memory as it is, and arrays from a device may not be in C order.
    host = {name: np.asarray(jax.device_get(leaf), order="C") for name, leaf in named_leaves(params).items()}
    try:
        with atomic_write(path) as partial_path:
            checksums = {name: tensor_checksum(array) for name, array in host.items()}
            save_file(host, partial_path, header_with_checksums(metadata, checksums))
    except (OSError, SafetensorError) as error:
        reason = f"{path} cannot be written ({error.__cause__ or error})"
        raise CheckpointError(reason, "make room, or choose another place") from error


def load_params(path: Path, abstract: Any, skipped: Collection[str] = ()) -> Any:
    """Read what `save_params` wrote.

    Args:
      path: the file.
      abstract: a pytree with the same names; its leaves have the dtypes to cast to and, optionally, shardings.
      skipped: names of leaves that are not read; they stay as they are in `abstract`.

    Raises:
      CheckpointError: the file is missing or damaged, or has other names or shapes (all are listed).
    """
    abstract_leaves = named_leaves(abstract)
    loaded = {}
    try:
        with safe_open(path, framework="np") as file:
            checksums = checksums_of_header(file.metadata()) if verification_enabled() else None
            saved_shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            compare_shapes(saved_shapes, abstract_leaves, Path(path))
            for name, leaf in abstract_leaves.items():
                if name in skipped:
                    loaded[name] = leaf
                    continue
                array = file.get_tensor(name)
                check_tensor(name, array, checksums)
                loaded[name] = _put_on_devices(array.astype(leaf.dtype, copy=False), getattr(leaf, "sharding", None))
    except CheckpointError:
        raise
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read: it is missing or damaged ({error})", "copy or convert the weights again"
        ) from error
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged ({error})", f"copy or convert the weights again ({VERIFY_OFF})"
        ) from error
    return with_leaves(abstract, loaded)


def read_record(path: Path) -> dict[str, Any]:
    """Return the metadata of the run whose trained weights a file holds, from its header; {} if it has none.

    Raises:
      CheckpointError: the file is missing or damaged.
    """
    remedy = "copy or fetch the model again"
    try:
        with safe_open(path, framework="np") as file:
            record = json.loads((file.metadata() or {}).get(RECORD_KEY, "{}"))
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its header is damaged ({error})", remedy) from error
    if not isinstance(record, dict):
        raise CheckpointError(f'{path}: "{RECORD_KEY}" in its header is no JSON object', remedy)
    return record


def _put_on_devices(host: np.ndarray, sharding: Any) -> jax.Array:
    """Put an array that every host holds onto the devices; each host copies only the shards of its own devices."""
    if sharding is None:
        return jnp.asarray(host)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def compare_shapes(saved: Mapping[str, tuple[int, ...]], abstract_leaves: Mapping[str, Any], path: Path) -> None:
    """Check that saved arrays have the names and shapes of a model.

    Raises:
      CheckpointError: lists those that differ.
    """
    expected = {name: tuple(np.shape(leaf)) for name, leaf in abstract_leaves.items()}
    mismatches = [
        f"{name}: {saved.get(name, 'absent')} there, {expected.get(name, 'absent')} here"
        for name in sorted(saved.keys() | expected.keys())
        if saved.get(name) != expected.get(name)
    ]
    if mismatches:
        raise CheckpointError(
            f"{path} was saved from a model of another size",
            "use the config.model and config.lora that it was made with:\n  " + "\n  ".join(mismatches),
        )
