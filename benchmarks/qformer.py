"""The Q-Former against that of `transformers` (torch), at BLIP-2's size: `python -m benchmarks.qformer`.

By default 8 frames on a CPU and the 75 of a video on a GPU, each of 257 tokens of ViT-g's width.
"""

from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.models import MINIMAL_VIT, make_jax_model, make_torch_model, minimal_config, random_weights
from benchmarks.paired import BenchmarkSettings, ComparisonRow, parse_args, report
from benchmarks.towers import compare_tower
from calce_jax.config import AttentionImplementation
from calce_jax.models.calce_sizes import QFormerConfig, VitConfig
from calce_jax.models.qformer import QFormer


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__, frames={"type": int}, attention={"choices": ("xla", "dpa", "flash"), "default": "xla"}
    )
    frames = args.frames or (8 if settings.device == "cpu" else 75)
    report(settings, "qformer", [compare_qformer(settings, frames, args.attention)])


def compare_qformer(settings: BenchmarkSettings, count: int, attention: AttentionImplementation) -> ComparisonRow:
    """Compare the query tokens of `count` frames."""
    vit_config = VitConfig.eva_g()
    minimal_vit = replace(MINIMAL_VIT, width=vit_config.width, heads=vit_config.heads)
    model_config = minimal_config(vit=minimal_vit, qformer=replace(QFormerConfig.bert_base(), vocab=32)).with_attention(
        attention
    )
    weights = random_weights(model_config)
    name = f"Q-Former of BLIP-2, {count} frames, attention {attention}"
    ours, theirs = make_jax_model(weights, settings).qformer, make_torch_model(weights, settings)
    return compare_query_tokens(settings, name, ours, theirs, (count, vit_config.num_tokens))


def compare_query_tokens(
    settings: BenchmarkSettings, name: str, ours: QFormer, blip2: Any, shape: tuple[int, int]
) -> ComparisonRow:
    """Compare two Q-Formers with the same weights on random tokens of frames; `shape` is frames and tokens of each."""
    import torch  # noqa: PLC0415

    frames = np.random.default_rng(0).standard_normal((*shape, ours.config.image_width), np.float32)
    qformer, queries = blip2.qformer, blip2.query_tokens.expand(shape[0], -1, -1)
    image = torch.from_numpy(frames).to(settings.torch_device, queries.dtype)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state

    return compare_tower(
        settings,
        name,
        ours,
        lambda qformer, x: qformer.encode_images(x),
        inputs=jnp.asarray(frames, settings.dtype),
        theirs=theirs,
        their_tower=qformer,
    )


if __name__ == "__main__":
    main()
