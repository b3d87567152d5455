"""The query that both sides compute: read from the prepared tables by the input pipeline."""

from dataclasses import replace

import numpy as np

from benchmarks.full_size.workspace import Dtype, Workspace
from calce_jax.batch import Batch
from calce_jax.input_pipeline.batches import make_iterator
from calce_jax.input_pipeline.input_config import input_config
from calce_jax.text.tokenizers import open_tokenizers

# In bfloat16, whose distance from float32 is an average; torch is slow on a CPU without the instructions.
BFLOAT16_FRAMES = 8


def first_batch(workspace: Workspace) -> Batch:
    """Return a batch of the first query of split val, for stage 1, with the labels of its answer."""
    run = workspace.run_config(1)
    inputs = replace(input_config(run, "val", workspace.model_config(), training=False), batch_size=1, num_workers=0)
    tokenizers = open_tokenizers(run)
    return next(make_iterator(inputs, tokenizers.t5, tokenizers.bert))


def first_frames(workspace: Workspace, dtype: Dtype) -> np.ndarray:
    """Return the frames of `first_batch`, uint8 (T Y X 3); in bfloat16 the first of them."""
    frames = np.array(first_batch(workspace).frames[0])
    return frames if dtype == "float32" else frames[:BFLOAT16_FRAMES]


def save_arrays(workspace: Workspace, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays that another process compares."""
    path = workspace.root / "compare" / f"{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, allow_pickle=False, **arrays)


def load_arrays(workspace: Workspace, name: str) -> dict[str, np.ndarray]:
    """Read what `save_arrays` wrote."""
    with np.load(workspace.root / "compare" / f"{name}.npz") as file:
        return dict(file)
