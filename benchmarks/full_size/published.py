"""Random weights in the layouts in which BLIP-2, BERT and CALCE are published.

Scales are those of trained towers: activations of size 1, and a few channels of the residual stream a hundred times
larger, as ViT-g and T5 have. Numbers are float32, as published, and rounded to bfloat16, so that both dtypes hold the
same model.
"""

from collections.abc import Mapping
from dataclasses import replace

import ml_dtypes
import numpy as np

from benchmarks.full_size.workspace import Workspace
from benchmarks.models import random_weights
from calce_jax.checkpoints.convert import bert
from calce_jax.checkpoints.convert.calce_pth import write_checkpoint
from calce_jax.checkpoints.convert.huggingface import write_blip2
from calce_jax.checkpoints.convert.mapping import mapping_rows
from calce_jax.checkpoints.convert.state_dict import LazyArray, lazy_state_dict
from calce_jax.checkpoints.convert.weights import Weights
from calce_jax.checkpoints.convert.writer import write_safetensors

LARGE_CHANNELS, LARGE = 3, 100.0
# The block whose feed-forward part writes the large channels.
LARGE_BLOCK = 1


def write_published(workspace: Workspace) -> None:
    """Write the folders of BLIP-2 and BERT, and a checkpoint of each stage; replaces nothing."""
    weights = published_weights(workspace, stage=1)
    write_blip2(workspace.blip2, replace(weights, trained={}))
    rows = mapping_rows(bert.key_mapping())
    names = {name for row in rows for name in row.param_names}
    params = {name: leaf for name, leaf in weights.base.items() if name in names}
    workspace.bert.mkdir(parents=True, exist_ok=True)
    write_safetensors(workspace.bert / "model.safetensors", lazy_state_dict(rows, params, tied=False))
    (workspace.bert / "config.json").write_text("{}", encoding="utf-8")
    for stage in (1, 2):
        write_checkpoint(workspace.checkpoint(stage), published_weights(workspace, stage))


def published_weights(workspace: Workspace, stage: int) -> Weights:
    """Return the weights, drawn when they are read; both stages have the same base and other trained weights."""
    model_config = workspace.model_config()
    base = random_weights(model_config, seed=0)
    trained = random_weights(model_config, seed=stage).trained
    return replace(base, base=_as_published(base.base), trained=_as_published(trained))


def _as_published(weights: Mapping[str, LazyArray]) -> dict[str, LazyArray]:
    return {name: replace(leaf, read=lambda name=name, leaf=leaf: _draw(name, leaf)) for name, leaf in weights.items()}


def _draw(name: str, leaf: LazyArray) -> np.ndarray:
    array = leaf.read()
    if name == "vit/blocks/mlp/wo/bias":
        array[LARGE_BLOCK, :LARGE_CHANNELS] = LARGE
    if name.startswith("t5/") and name.endswith("/mlp/wo/kernel"):
        array[LARGE_BLOCK, :, :LARGE_CHANNELS] *= LARGE
    for part in array if array.ndim == 3 else [array]:  # a layer at a time: a stack has a gigabyte
        part[...] = part.astype(ml_dtypes.bfloat16)
    return array
