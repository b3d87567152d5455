"""A pair of stages that search: the minute model with the tiny tokenizers, its weights drawn at random."""

from dataclasses import replace

from calce_jax.distributed.sharding import make_mesh
from calce_jax.inference.trained_run import Trained
from calce_jax.presets.tiny import tiny_config
from calce_jax.text.tokenizers import open_tokenizers
from tests.minute import SIZES, make_model

LONGEST = 10.0  # seconds of a piece
FRAMES = {1: 5, 2: 10}


def make_stages() -> list[Trained]:
    """Return both, which answer something about anything."""
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
        )
        tokenizers = open_tokenizers(config)
        sizes = replace(
            SIZES,
            t5=replace(SIZES.t5, vocab=len(tokenizers.t5)),
            qformer=replace(SIZES.qformer, vocab=len(tokenizers.bert)),
        )
        stages.append(Trained(config, sizes, tokenizers, make_mesh("single"), *make_model(sizes)))
    return stages
