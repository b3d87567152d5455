"""The vision tower beside `transformers`' (torch), at EVA-ViT-g's width: `python -m benchmarks.vision`.

On a CPU a few blocks and frames; on a GPU, by default, all 39 blocks and the 75 frames of a video.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.aot.flops import count_flops
from benchmarks.models import in_jax, in_torch, random_weights, sizes_of
from benchmarks.paired import Row, Setting, apart, arguments, compare, compiled, report
from calce_jax.models.attention import Implementation
from calce_jax.models.vit import VitConfig


def main() -> None:
    """Measure and write it down."""
    setting, given = arguments(
        __doc__,
        blocks={"type": int},
        frames={"type": int},
        attention={"choices": ("xla", "dpa", "flash"), "default": "xla"},
    )
    blocks, frames = (4, 4) if setting.device == "cpu" else (39, 75)
    rows = [vision(setting, given.blocks or blocks, given.frames or frames, given.attention)]
    report(setting, "vision", rows)


def vision(setting: Setting, blocks: int, count: int, attention: Implementation) -> Row:
    """Compare the tower, patches to tokens."""
    import torch  # noqa: PLC0415

    sizes = sizes_of(vit=replace(VitConfig.eva_g(), depth=blocks)).attending(attention)
    weights = random_weights(sizes)
    side = sizes.vit.image_size
    frames = np.random.default_rng(0).standard_normal((count, side, side, 3), np.float32)

    graph, params = nnx.split(in_jax(weights, setting).vit)
    given = jnp.asarray(frames, setting.dtype)

    def see(params: nnx.State, frames: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(frames)

    program, seconds = compiled(see, params, given)
    tower = in_torch(weights, setting).vision_model
    pixels = torch.from_numpy(frames.transpose(0, 3, 1, 2).copy()).to(setting.torch_device, tower.dtype)

    @torch.no_grad()
    def theirs() -> torch.Tensor:
        return tower.encoder(tower.embeddings(pixels)).last_hidden_state

    return compare(
        setting,
        f"{blocks} blocks of ViT-g, {count} frames, {setting.dtype}, attention {attention}",
        lambda: program(params, given),
        theirs,
        other=f"transformers ({tower.config._attn_implementation})",
        agreement=lambda a, b: apart(a, b, most=1e-4 if setting.dtype == "float32" else 0.1),
        compile_s=seconds,
        program=program,
        tflop=count_flops(jax.make_jaxpr(see)(params, given)) / 1e12,
    )


if __name__ == "__main__":
    main()
