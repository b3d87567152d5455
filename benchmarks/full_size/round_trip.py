"""Whether weights that were converted in and out again have the bits of the published files."""

from collections.abc import Mapping

import numpy as np

from benchmarks.full_size.steps import Check
from benchmarks.full_size.workspace import Workspace
from calce_jax.checkpoints.convert.reader import open_tensors
from calce_jax.checkpoints.convert.state_dict import LazyArray


def compare_base(workspace: Workspace) -> list[Check]:
    """Compare BLIP-2 with its copy."""
    return _count_differences("BLIP-2", open_tensors(workspace.blip2), open_tensors(workspace.back))


def compare_checkpoint(workspace: Workspace) -> list[Check]:
    """Compare the original's checkpoint of stage 1 with its copy."""
    return _count_differences(
        "the original's checkpoint", open_tensors(workspace.checkpoint(1)), open_tensors(workspace.checkpoint_back)
    )


def _count_differences(what: str, published: Mapping[str, LazyArray], copy: Mapping[str, LazyArray]) -> list[Check]:
    different = [name for name in published if name not in copy or not _same_bits(published[name], copy[name])]
    return [
        Check(f"tensors of {what}", len(published)),
        Check(f"tensors of {what} that differ after conversion in and out", len(different), 0),
        Check(f"tensors that only the copy of {what} has", len(copy.keys() - published.keys()), 0),
    ]


def _same_bits(a: LazyArray, b: LazyArray) -> bool:
    left, right = np.asarray(a.read()), np.asarray(b.read())
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()
