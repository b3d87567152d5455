"""The vision tower against that of `transformers` (torch), at EVA-ViT-g's width: `python -m benchmarks.vision`.

By default four blocks and four frames on a CPU, all 39 blocks and the 75 frames of a video on a GPU.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.models import make_jax_model, make_torch_model, minimal_config, random_weights
from benchmarks.paired import (
    BenchmarkSettings,
    ComparisonRow,
    check_close,
    compare,
    compile_program,
    parse_args,
    report,
)
from calce_jax.models.attention import AttentionImplementation
from calce_jax.models.vit import VitConfig


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__,
        blocks={"type": int},
        frames={"type": int},
        attention={"choices": ("xla", "dpa", "flash"), "default": "xla"},
    )
    blocks, frames = (4, 4) if settings.device == "cpu" else (39, 75)
    rows = [compare_vision(settings, args.blocks or blocks, args.frames or frames, args.attention)]
    report(settings, "vision", rows)


def compare_vision(
    settings: BenchmarkSettings, blocks: int, count: int, attention: AttentionImplementation
) -> ComparisonRow:
    """Compare `blocks` blocks on `count` frames, from pixels to tokens."""
    import torch  # noqa: PLC0415

    model_config = minimal_config(vit=replace(VitConfig.eva_g(), depth=blocks)).with_attention(attention)
    weights = random_weights(model_config)
    side = model_config.vit.image_size
    frames = np.random.default_rng(0).standard_normal((count, side, side, 3), np.float32)

    graph, params = nnx.split(make_jax_model(weights, settings).vit)
    images = jnp.asarray(frames, settings.dtype)

    def encode(params: nnx.State, frames: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(frames)

    program, seconds = compile_program(encode, params, images)
    tower = make_torch_model(weights, settings).vision_model
    pixels = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()).to(settings.torch_device, tower.dtype)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return tower.encoder(tower.embeddings(pixels)).last_hidden_state

    return compare(
        settings,
        f"{blocks} blocks of ViT-g, {count} frames, {settings.dtype}, attention {attention}",
        lambda: program(params, images),
        theirs,
        other=f"transformers ({tower.config._attn_implementation})",
        agreement=lambda a, b: check_close(a, b, max_difference=1e-4 if settings.dtype == "float32" else 0.1),
        compile_s=seconds,
        program=program,
        tflop=count_flops(jax.make_jaxpr(encode)(params, images)) / 1e12,
    )


if __name__ == "__main__":
    main()
