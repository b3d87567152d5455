"""The same random weights in our model and in BLIP-2 of `transformers`."""

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
from calce_jax.models.calce import Calce
from calce_jax.models.calce_sizes import CalceConfig, QFormerConfig, T5Config, VitConfig

# Minimal sizes of the parts that a benchmark does not run.
MINIMAL_VIT = VitConfig(image_size=28, patch_size=14, width=16, depth=1, heads=2, mlp_width=16)
MINIMAL_QFORMER = QFormerConfig(
    width=16, depth=1, heads=2, mlp_width=16, query_tokens=2, image_width=16, vocab=32, max_positions=8
)
MINIMAL_T5 = T5Config(width=16, heads=2, head_width=8, mlp_width=16, encoder_depth=1, decoder_depth=1, vocab=32)


def minimal_config(
    vit: VitConfig = MINIMAL_VIT, qformer: QFormerConfig = MINIMAL_QFORMER, t5: T5Config = MINIMAL_T5, **others: Any
) -> CalceConfig:
    """Return the config of a model with minimal parts, except those that are given."""
    return CalceConfig(vit, replace(qformer, image_width=vit.width), t5, others.pop("lora", None), **others)


def random_weights(model_config: CalceConfig, seed: int = 0) -> Weights:
    """Return random weights with a scale that keeps activations near size 1."""
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

    return Weights(draw(base), draw(trained), model_config, "random")


def make_jax_model(weights: Weights, settings: BenchmarkSettings) -> Calce:
    """Return our model, with frozen weights in `settings.dtype`."""
    model_config = replace(weights.model_config, dtype=settings.dtype)
    model = nnx.eval_shape(lambda: Calce(model_config, rngs=nnx.Rngs(0)))
    cast_weights = weights.cast_frozen(np.dtype(jnp.dtype(settings.dtype)))
    arrays = {**cast_weights.base, **cast_weights.trained}
    state = nnx.state(model)
    leaves = {name: jnp.asarray(arrays[name.replace("/base/", "/")].read()) for name in named_leaves(state)}
    nnx.update(model, with_leaves(state, leaves))
    return model


def make_torch_model(weights: Weights, settings: BenchmarkSettings) -> Any:
    """Return `Blip2ForConditionalGeneration` of transformers in eval mode, with merged adapters."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    torch.set_num_threads(settings.threads)
    # It warns that the head is tied to the embedding, as of every T5; here it is not.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "blip2"
        write_blip2(path, weights.cast_frozen(np.dtype(jnp.dtype(settings.dtype))))
        model: Any = transformers.Blip2ForConditionalGeneration.from_pretrained(
            path, dtype=getattr(torch, settings.dtype)
        )
    return as_calce(model.to(settings.torch_device))


def as_calce(blip2: Any) -> Any:
    """Return BLIP-2 in eval mode and with CALCE's epsilon of `ln_vision`, which its config cannot say."""
    blip2.vision_model.post_layernorm.eps = 1e-5
    return blip2.eval()


def weight_scale(name: str, shape: tuple[int, ...], model_config: CalceConfig) -> float:
    """Return the standard deviation of a random weight; 0 for the scale of a norm, which is 1 everywhere."""
    if name.endswith("/scale"):
        return 0.0
    scale = shape[-2] ** -0.5 if name.endswith(("kernel", "/a", "/b")) else 0.02
    if name.startswith("t5/") and name.endswith("/q/kernel"):
        scale *= model_config.t5.head_width**-0.5  # T5 does not divide attention scores by sqrt(head width)
    if name.endswith("/b"):
        scale *= 0.1  # small adapters
    return 0.5 if name.endswith("embedding") else scale


def _draw(name: str, shape: tuple[int, ...], model_config: CalceConfig, seed: np.random.SeedSequence) -> np.ndarray:
    if not (scale := weight_scale(name, shape, model_config)):
        return np.ones(shape, np.float32)
    return scale * np.random.default_rng(seed).standard_normal(shape, np.float32)
