"""Peak memory of converting weights at full size: `python benchmarks/convert_memory.py --out=DIR`.

Writes BLIP-2 with Flan-T5-XL in the layout of the Hugging Face hub and the text encoder of BERT, with random bfloat16
weights, to a folder in DIR (8.1 GB). Then `calce convert` makes base weights of them in another process, whose peak
resident set size is printed, with the times. One parameter is compared bit for bit. The folder is deleted at the end;
twice its size must be free.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from calce_jax.checkpoints.convert import bert, blip2
from calce_jax.checkpoints.convert.mapping import KeyMapping, mapping_rows
from calce_jax.checkpoints.convert.reader import open_tensors
from calce_jax.checkpoints.convert.state_dict import LazyArray, lazy_state_dict
from calce_jax.checkpoints.convert.weights import base_param_shapes
from calce_jax.checkpoints.convert.writer import write_shards
from calce_jax.models.calce_sizes import CalceConfig

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
COMPARED_WEIGHT = "t5/decoder/blocks/mlp/wo/kernel", "language_model.decoder.block.23.layer.2.DenseReluDense.wo.weight"


def main() -> None:
    """Measure in a temporary folder and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the temporary files")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="convert_memory_", dir=args.out))
    try:
        print(json.dumps(measure_conversion(folder), indent=2))
    finally:
        shutil.rmtree(folder)


def measure_conversion(folder: Path) -> dict[str, object]:
    """Return sizes, peak memory, times and the machine."""
    shapes = base_param_shapes(CalceConfig.full())
    start_time = time.perf_counter()
    for kind, table in (("hf", blip2.hf_mapping()), ("bert", bert.key_mapping())):
        (folder / kind).mkdir()
        write_shards(folder / kind, random_tensors(table, shapes))
    write_time, target = time.perf_counter(), folder / "base.safetensors"
    source = f"--source=hf:{folder / 'hf'},bert:{folder / 'bert'}"
    command = [sys.executable, "-m", "calce_jax.commands.cli", "convert", source, f"--target=base:{target}"]
    subprocess.run(command, check=True)
    end_time = time.perf_counter()
    ours, theirs = COMPARED_WEIGHT
    converted, original = open_tensors(target)[ours].read()[-1].T, open_tensors(folder / "hf")[theirs].read()
    np.testing.assert_array_equal(converted.view(np.uint16), original.view(np.uint16))
    return {
        "parameters": sum(int(np.prod(leaf.shape)) for leaf in shapes.values()),
        "checkpoint GB": round(folder_gigabytes(folder / "hf") + folder_gigabytes(folder / "bert"), 2),
        "base weights GB": round(target.stat().st_size / 1e9, 2),
        "peak memory of converting GB": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6, 2),
        "seconds to write": round(write_time - start_time),
        "seconds to convert": round(end_time - write_time),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
    }


def random_tensors(table: KeyMapping, shapes: Mapping[str, Any]) -> dict[str, LazyArray]:
    """Return the tensors of a checkpoint with random bits, drawn when they are read."""
    parts = {part for row in mapping_rows(table) for part in row.param_names}
    leaves = {name: leaf for name, leaf in shapes.items() if name in parts}
    tensors = lazy_state_dict(mapping_rows(table), leaves, tied=False)
    return {name: random_tensor(number, name, tensor.shape) for number, (name, tensor) in enumerate(tensors.items())}


def random_tensor(seed: int, name: str, shape: tuple[int, ...]) -> LazyArray:
    """Return random finite bfloat16 numbers below 2; zeros in the bias of attention keys, which the model lacks."""

    def read() -> np.ndarray:
        count = int(np.prod(shape))
        # Without the highest bit of the exponent no number is infinite or NaN.
        bits = np.frombuffer(np.random.default_rng(seed).bytes(2 * count), np.uint16) & np.uint16(0xBFFF)
        if name.endswith("qkv.bias"):
            bits.reshape(3, -1)[1] = 0
        return bits.view(BFLOAT16).reshape(shape)

    return LazyArray(shape, BFLOAT16, read)


def folder_gigabytes(folder: Path) -> float:
    """Return the size of a folder's files in GB."""
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e9


if __name__ == "__main__":
    main()
