"""The vision tower against that of `transformers` (torch), at EVA-ViT-g's width: `python -m benchmarks.vision`.

By default four blocks and four frames on a CPU, all 39 blocks and the 75 frames of a video on a GPU.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.models import make_jax_model, make_torch_model, minimal_config, random_weights
from benchmarks.paired import BenchmarkSettings, ComparisonRow, parse_args, report
from benchmarks.towers import compare_tower
from calce_jax.config import AttentionImplementation
from calce_jax.models.calce_sizes import VitConfig
from calce_jax.models.vit import Vit


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
    model_config = minimal_config(vit=replace(VitConfig.eva_g(), depth=blocks)).with_attention(attention)
    weights = random_weights(model_config)
    name = f"{blocks} blocks of ViT-g, {count} frames, attention {attention}"
    vit, tower = make_jax_model(weights, settings).vit, make_torch_model(weights, settings).vision_model
    return compare_vit(settings, name, vit, tower, count=count)


def compare_vit(
    settings: BenchmarkSettings, name: str, vit: Vit, tower: Any, *, count: int, counted: Vit | None = None
) -> ComparisonRow:
    """Compare two towers with the same weights on `count` random frames; see `compare_tower`."""
    import torch  # noqa: PLC0415

    side = vit.config.image_size
    frames = np.random.default_rng(0).standard_normal((count, side, side, 3), np.float32)
    pixels = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy())
    pixels = pixels.to(settings.torch_device, getattr(torch, settings.dtype))

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return tower.encoder(tower.embeddings(pixels)).last_hidden_state

    return compare_tower(
        settings,
        name,
        vit,
        lambda vit, x: vit(x),
        inputs=jnp.asarray(frames, settings.dtype),
        theirs=theirs,
        their_tower=tower,
        counted=counted,
    )


if __name__ == "__main__":
    main()
