"""The Q-Former against that of `transformers` (torch), at BLIP-2's size: `python -m benchmarks.qformer`.

By default 8 frames on a CPU and the 75 of a video on a GPU, each of 257 tokens of ViT-g's width.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.models import MINIMAL_VIT, make_jax_model, make_torch_model, minimal_config, random_weights
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
from calce_jax.models.qformer import QFormerConfig
from calce_jax.models.vit import VitConfig


def main() -> None:
    """Run the benchmark and write its report."""
    settings, args = parse_args(
        __doc__, frames={"type": int}, attention={"choices": ("xla", "dpa", "flash"), "default": "xla"}
    )
    frames = args.frames or (8 if settings.device == "cpu" else 75)
    report(settings, "qformer", [compare_qformer(settings, frames, args.attention)])


def compare_qformer(settings: BenchmarkSettings, count: int, attention: AttentionImplementation) -> ComparisonRow:
    """Compare the query tokens of `count` frames."""
    import torch  # noqa: PLC0415

    vit_config = VitConfig.eva_g()
    minimal_vit = replace(MINIMAL_VIT, width=vit_config.width, heads=vit_config.heads)
    model_config = minimal_config(vit=minimal_vit, qformer=replace(QFormerConfig.bert_base(), vocab=32)).with_attention(
        attention
    )
    weights = random_weights(model_config)
    frames = np.random.default_rng(0).standard_normal((count, vit_config.num_tokens, vit_config.width), np.float32)

    graph, params = nnx.split(make_jax_model(weights, settings).qformer)
    image_tokens = jnp.asarray(frames, settings.dtype)

    def encode(params: nnx.State, frames: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).encode_images(frames)

    program, seconds = compile_program(encode, params, image_tokens)
    model = make_torch_model(weights, settings)
    qformer, queries = model.qformer, model.query_tokens.expand(count, -1, -1)
    image = torch.from_numpy(frames).to(settings.torch_device, queries.dtype)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return qformer(query_embeds=queries, encoder_hidden_states=image).last_hidden_state

    return compare(
        settings,
        f"Q-Former of BLIP-2, {count} frames, {settings.dtype}, attention {attention}",
        lambda: program(params, image_tokens),
        theirs,
        other=f"transformers ({qformer.config._attn_implementation})",
        agreement=lambda a, b: check_close(a, b, max_difference=1e-4 if settings.dtype == "float32" else 0.1),
        compile_s=seconds,
        program=program,
        tflop=count_flops(jax.make_jaxpr(encode)(params, image_tokens)) / 1e12,
    )


if __name__ == "__main__":
    main()
