"""The Q-Former beside `transformers`' (torch), at BLIP-2's size: `python -m benchmarks.qformer`.

On a CPU a few frames, on a GPU by default the 75 of a video; each of 257 tokens of ViT-g's width.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.models import NO_VIT, in_jax, in_torch, random_weights, sizes_of
from benchmarks.paired import Row, Setting, apart, arguments, compare, compiled, report
from calce_jax.models.attention import Implementation
from calce_jax.models.qformer import QFormerConfig
from calce_jax.models.vit import VitConfig


def main() -> None:
    """Measure and write it down."""
    setting, given = arguments(
        __doc__, frames={"type": int}, attention={"choices": ("xla", "dpa", "flash"), "default": "xla"}
    )
    frames = given.frames or (8 if setting.device == "cpu" else 75)
    report(setting, "qformer", [qformer(setting, frames, given.attention)])


def qformer(setting: Setting, count: int, attention: Implementation) -> Row:
    """Compare what the queries read in frames."""
    import torch  # noqa: PLC0415

    eye = VitConfig.eva_g()
    vit = replace(NO_VIT, width=eye.width, heads=eye.heads)
    sizes = sizes_of(vit=vit, qformer=replace(QFormerConfig.bert_base(), vocab=32)).attending(attention)
    weights = random_weights(sizes)
    frames = np.random.default_rng(0).standard_normal((count, eye.tokens, eye.width), np.float32)

    graph, params = nnx.split(in_jax(weights, setting).qformer)
    given = jnp.asarray(frames, setting.dtype)

    def read(params: nnx.State, frames: jax.Array) -> jax.Array:
        return nnx.merge(graph, params).visual(frames)

    program, seconds = compiled(read, params, given)
    model = in_torch(weights, setting)
    reader, queries = model.qformer, model.query_tokens.expand(count, -1, -1)
    image = torch.from_numpy(frames).to(setting.torch_device, queries.dtype)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return reader(query_embeds=queries, encoder_hidden_states=image).last_hidden_state

    return compare(
        setting,
        f"Q-Former of BLIP-2, {count} frames, {setting.dtype}, attention {attention}",
        lambda: program(params, given),
        theirs,
        other=f"transformers ({reader.config._attn_implementation})",
        agreement=lambda a, b: apart(a, b, most=1e-4 if setting.dtype == "float32" else 0.1),
        compile_s=seconds,
        program=program,
        tflop=count_flops(jax.make_jaxpr(read)(params, given)) / 1e12,
    )


if __name__ == "__main__":
    main()
