"""A BLIP-2 with adapters that is computed in a moment: its sizes, random weights, and an input."""

import numpy as np

from calce_jax.checkpoints.convert.weights import Weights, as_lazy, base_param_shapes, trainable_param_shapes
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig
from calce_jax.models.lora import LoraConfig

SIZES = CalceConfig(
    VitConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_width=12),
    QFormerConfig(width=12, depth=3, heads=2, mlp_width=20, query_tokens=3, image_width=8, vocab=11, max_positions=9),
    T5Config(width=16, heads=2, head_width=4, mlp_width=24, encoder_depth=2, decoder_depth=3, vocab=19),
    LoraConfig(rank=2, alpha=4.0),
    compressed_query_tokens=2,
)
# The token that stands for an image, and the one that starts an answer.
IMAGE, START = 18, 0


def random_weights(shapes, seed):
    rng = np.random.default_rng(seed)
    return {name: as_lazy((0.3 * rng.normal(size=leaf.shape)).astype(np.float32)) for name, leaf in shapes.items()}


BASE, TRAINED = random_weights(base_param_shapes(SIZES), 1), random_weights(trainable_param_shapes(SIZES), 2)
WEIGHTS = Weights(BASE, TRAINED, SIZES, "random")
rng = np.random.default_rng(5)
PIXELS = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
TEXT = rng.integers(2, IMAGE, (2, 5)).astype(np.int32)
