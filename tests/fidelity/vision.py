"""01: the vision transformer, block by block, and its position embedding at other frame sizes."""

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from calce_jax.checkpoints.convert import qformer as qformer_names
from calce_jax.checkpoints.convert.mapping import add_prefix
from calce_jax.checkpoints.convert.vit import KEY_MAPPING, interpolate_positions
from calce_jax.models.calce_sizes import VitConfig
from calce_jax.models.layers import LayerNorm
from calce_jax.models.vit import Vit
from tests.fidelity import sizes
from tests.fidelity.folder import RecordingFolder
from tests.fidelity.report import Group
from tests.helpers import recordings_io

# float32 sums in another order, of hidden states up to 10.
ACTIVATIONS = 1e-5
# The original computes the bicubic weights in float32, `interpolate_positions` in float64.
POSITIONS = 2e-6
PREFIX = "visual_encoder."


def vit(folder: RecordingFolder) -> Iterator[Group]:
    """Compare the blocks, the output and `ln_vision`, other frame sizes, and the interpolated position embedding."""
    arrays = folder.arrays("01_vit")
    tensors = arrays.with_prefix(PREFIX)
    config = sizes.vit(tensors, folder.settings("01_vit"), eps=float(arrays["block_norm_eps"]))

    blocks = Group("01_vit/blocks", ACTIVATIONS)
    yield blocks
    model = load_vit(config, tensors)
    states = np.asarray(jax.jit(model.hidden_states)(to_channels_last(arrays["input"])))
    recorded = [name for name in arrays if re.fullmatch(r"block\d+_out", name)]
    with blocks.case("number of blocks") as case:
        case.same(config.depth, len(recorded))
    for number in range(config.depth):
        with blocks.case(f"block {number}") as case:
            case.close(states[number], arrays[f"block{number}_out"])

    final = Group("01_vit/final", ACTIVATIONS)
    yield final
    with final.case("output") as case:
        output = nnx.jit(Vit.__call__)(model, to_channels_last(arrays["input"]))
        case.close(output, arrays["output"])
    with final.case("ln_vision") as case:
        norm = nnx.Dict(ln_vision=LayerNorm(config.width, eps=float(arrays["ln_eps"])))
        recordings_io.load_state_dict(norm, qformer_names.LN_VISION, arrays.with_prefix("ln_vision."))
        case.close(norm.ln_vision(output), arrays["ln_output"])
    for name in list(arrays):
        if name_match := re.fullmatch(r"input(\d+)", name):
            with final.case(f"frames of {name_match[1]} pixels") as case:
                other = dataclasses.replace(config, image_size=int(name_match[1]))
                positions = interpolate_positions(tensors[f"{PREFIX}pos_embed"][0], other.grid_size)
                larger = load_vit(other, {**tensors, f"{PREFIX}pos_embed": positions[None]})
                case.close(
                    nnx.jit(Vit.__call__)(larger, to_channels_last(arrays[name])), arrays[f"output{name_match[1]}"]
                )

    resized = Group("01_vit/positions", POSITIONS)
    yield resized
    for name in list(arrays):
        if name_match := re.fullmatch(r"pos_embed_(\d+)", name):
            with resized.case(f"frames of {name_match[1]} pixels") as case:
                grid = int(name_match[1]) // config.patch_size
                case.close(interpolate_positions(tensors[f"{PREFIX}pos_embed"][0], grid), arrays[name][0])


def load_vit(config: VitConfig, tensors: sizes.Tensors) -> Vit:
    """Return the recorded vision transformer."""
    return recordings_io.load_state_dict(
        nnx.eval_shape(lambda: Vit(config, rngs=nnx.Rngs(0))), add_prefix(KEY_MAPPING, PREFIX), tensors
    )


def to_channels_last(recorded: np.ndarray) -> jax.Array:
    """Transpose recorded frames (N, C, H, W) to (N, H, W, C)."""
    return jnp.asarray(recorded.transpose(0, 2, 3, 1))
