"""One set of random weights, in our model and in `transformers`' BLIP-2, which is told to compute the same."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.paired import BenchmarkSettings
from calce_jax.checkpoints.convert.huggingface import write_blip2
from calce_jax.checkpoints.convert.state_dict import LazyArray
from calce_jax.checkpoints.convert.weights import Weights, base_param_shapes, trainable_param_shapes
from calce_jax.distributed.param_names import named_leaves, with_leaves
from calce_jax.models.calce import Calce, CalceConfig
from calce_jax.models.qformer import QFormerConfig
from calce_jax.models.t5 import T5Config
from calce_jax.models.vit import VitConfig

# The parts that a benchmark does not run, as small as they get.
MINIMAL_VIT = VitConfig(image_size=28, patch_size=14, width=16, depth=1, heads=2, mlp_width=16)
MINIMAL_QFORMER = QFormerConfig(
    width=16, depth=1, heads=2, mlp_width=16, query_tokens=2, image_width=16, vocab=32, max_positions=8
)
MINIMAL_T5 = T5Config(width=16, heads=2, head_width=8, mlp_width=16, encoder_depth=1, decoder_depth=1, vocab=32)


def minimal_config(
    vit: VitConfig = MINIMAL_VIT, qformer: QFormerConfig = MINIMAL_QFORMER, t5: T5Config = MINIMAL_T5, **others: Any
) -> CalceConfig:
    """Return a whole model whose parts are as small as they get, but for those that are given."""
    return CalceConfig(vit, replace(qformer, image_width=vit.width), t5, others.pop("lora", None), **others)


def random_weights(model_config: CalceConfig, seed: int = 0) -> Weights:
    """Return weights under which activations stay of size 1: nothing overflows, and nothing fades away."""
    base, trained = (
        base_param_shapes(model_config),
        {} if model_config.lora is None else trainable_param_shapes(model_config),
    )
    names = sorted({**base, **trained})
    seeds = dict(zip(names, np.random.SeedSequence(seed).spawn(len(names)), strict=True))

    def draw(shapes: Mapping[str, Any]) -> dict[str, LazyArray]:
        return {
            name: LazyArray(
                leaf.shape, np.dtype(np.float32), partial(_draw, name, leaf.shape, model_config, seeds[name])
            )
            for name, leaf in shapes.items()
        }

    return Weights(draw(base), draw(trained), model_config, "chance")


def make_jax_model(weights: Weights, setting: BenchmarkSettings) -> Calce:
    """Return our model, its frozen weights in the setting's dtype."""
    model_config = replace(weights.model_config, dtype=setting.dtype)
    model = nnx.eval_shape(lambda: Calce(model_config, rngs=nnx.Rngs(0)))
    cast_weights = weights.cast_frozen(np.dtype(jnp.dtype(setting.dtype)))
    arrays = {**cast_weights.base, **cast_weights.trained}
    state = nnx.state(model)
    leaves = {name: jnp.asarray(arrays[name.replace("/base/", "/")].read()) for name in named_leaves(state)}
    nnx.update(model, with_leaves(state, leaves))
    return model


def make_torch_model(weights: Weights, setting: BenchmarkSettings) -> Any:
    """Return `transformers`' `Blip2ForConditionalGeneration`, adapters merged, ready to answer."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    torch.set_num_threads(setting.threads)
    # It warns that the head is tied to the embedding. It is not: transformers says so of every T5.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blip2"
        write_blip2(path, weights.cast_frozen(np.dtype(jnp.dtype(setting.dtype))))
        model = transformers.Blip2ForConditionalGeneration.from_pretrained(path, dtype=getattr(torch, setting.dtype))
    model = model.to(setting.torch_device).eval()
    model.vision_model.post_layernorm.eps = 1e-5
    return model


def _draw(name: str, shape: tuple[int, ...], model_config: CalceConfig, seed: np.random.SeedSequence) -> np.ndarray:
    if name.endswith("/scale"):
        return np.ones(shape, np.float32)
    scale = shape[-2] ** -0.5 if name.endswith(("kernel", "/a", "/b")) else 0.02
    if name.startswith("t5/") and name.endswith("/q/kernel"):
        scale *= model_config.t5.head_width**-0.5  # T5 does not scale its scores down
    if name.endswith("/b"):
        scale *= 0.1  # an adapter adds little
    if name.endswith("embedding"):
        scale = 0.5
    return scale * np.random.default_rng(seed).standard_normal(shape, np.float32)
