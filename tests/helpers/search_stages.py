"""Models of both stages for searches: the smallest sizes, the tokenizers of the tiny model, random weights."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp

from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.trained_run import TrainedModel
from calce_jax.presets.tiny import tiny_config
from calce_jax.text.tokenizers import open_tokenizers
from tests.helpers.tiny_model import SIZES, make_model

MAX_SEGMENT_SECONDS = 10.0
FRAMES = {1: 5, 2: 10}


def make_stages(dtype: Literal["float32", "bfloat16"] = "float32") -> list[TrainedModel]:
    """Return the models of stages 1 and 2; `dtype` is that of frozen weights and activations."""
    stages = []
    for stage, frames in FRAMES.items():
        config = tiny_config(stage)
        config = replace(
            config,
            data=replace(config.data, frames=frames, eval_batch=1, captions=3),
            keyframes=replace(config.keyframes, clusters=2, filter_dilation=0),
            text=replace(config.text, buckets=(256,), bert_tokens=12, windows=4),
            generation=replace(config.generation, beams=2),
            weights=replace(config.weights, base=""),
            model=replace(config.model, frozen_dtype=dtype, compute_dtype=dtype),
        )
        tokenizers = open_tokenizers(config)
        sizes = replace(
            SIZES,
            dtype=dtype,
            t5=replace(SIZES.t5, vocab=len(tokenizers.t5)),
            qformer=replace(SIZES.qformer, vocab=len(tokenizers.bert)),
        )
        _, trainable, frozen = make_model(sizes)
        frozen = jax.tree.map(lambda leaf: leaf.astype(jnp.dtype(dtype)), frozen)
        stages.append(TrainedModel(config, sizes, tokenizers, make_mesh("single"), trainable, frozen))
    return stages
