"""The vision transformer against recorded activations, against transformers, and its invariants."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.checkpoints.convert import qformer as qformer_names
from calce_jax.checkpoints.convert.mapping import add_prefix
from calce_jax.checkpoints.convert.vit import KEY_MAPPING, interpolate_positions
from calce_jax.models.calce_sizes import VitConfig
from calce_jax.models.layers import LayerNorm
from calce_jax.models.vit import CLIP_MEAN, CLIP_STD, Vit, normalise_frames
from tests.helpers import recordings_io as golden
from tests.helpers.oracle import oracle

# float32 sums in another order, on a stream that reaches 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
MINUTE = VitConfig(image_size=8, patch_size=4, width=8, depth=2, heads=2, mlp_width=12)


encode = nnx.jit(Vit.__call__)


def deterministic_vit(config):
    return golden.deterministic_weights(lambda: Vit(config, rngs=nnx.Rngs(0)), KEY_MAPPING)


@pytest.fixture(scope="module")
def recorded(shared):
    return golden.load_recording(shared, "01_vit")


@pytest.fixture(scope="module")
def sizes(shared):
    sizes = json.loads((shared / "golden" / "config.json").read_text())["01_vit"]
    return VitConfig(sizes["img"], sizes["patch"], sizes["dim"], sizes["depth"], sizes["heads"], sizes["mlp_hidden"])


@pytest.fixture(scope="module")
def vit(recorded, sizes):
    tensors = golden.select_weights(recorded, "visual_encoder.")
    return golden.load_state_dict(
        nnx.eval_shape(lambda: Vit(sizes, rngs=nnx.Rngs(0))), add_prefix(KEY_MAPPING, "visual_encoder."), tensors
    )


@pytest.fixture(scope="module")
def tiny():
    return deterministic_vit(VitConfig.tiny())[0]


@pytest.fixture(scope="module")
def frames():
    return jax.random.normal(jax.random.key(1), (2, 56, 56, 3))


def test_every_block_as_recorded(vit, recorded):
    blocks = jax.jit(vit.hidden_states)(jnp.asarray(recorded["input"].transpose(0, 2, 3, 1)))
    for number in range(vit.config.depth):
        np.testing.assert_allclose(blocks[number], recorded[f"block{number}_out"], **CLOSE)


def test_tokens_and_their_norm_as_recorded(vit, recorded):
    tokens = encode(vit, jnp.asarray(recorded["input"].transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(tokens, recorded["output"], **CLOSE)
    norm = nnx.Dict(ln_vision=LayerNorm(32, eps=1e-5))
    golden.load_state_dict(norm, qformer_names.LN_VISION, golden.select_weights(recorded, "ln_vision."))
    np.testing.assert_allclose(norm.ln_vision(tokens), recorded["ln_output"], **CLOSE)


def test_larger_frames_as_recorded(sizes, recorded):
    tensors = golden.select_weights(recorded, "visual_encoder.")
    positions = interpolate_positions(tensors["visual_encoder.pos_embed"][0], 6)
    tensors["visual_encoder.pos_embed"] = positions[None]
    larger = nnx.eval_shape(lambda: Vit(dataclasses.replace(sizes, image_size=84), rngs=nnx.Rngs(0)))
    golden.load_state_dict(larger, add_prefix(KEY_MAPPING, "visual_encoder."), tensors)
    np.testing.assert_allclose(
        encode(larger, jnp.asarray(recorded["input84"].transpose(0, 2, 3, 1))), recorded["output84"], **CLOSE
    )


@pytest.mark.parametrize(("name", "grid"), [("pos_embed_84", 6), ("pos_embed_28", 2)])
def test_positions_as_recorded(recorded, name, grid):
    positions = interpolate_positions(recorded["visual_encoder.pos_embed"][0], grid)
    # The original computes the cubic weights in float32, here they are float64.
    np.testing.assert_allclose(positions, recorded[name][0], rtol=0, atol=3e-7)


def test_positions_between_patches():
    positions = np.array([9, 0, 1, 0, 1], np.float32)[
        :, None
    ]  # the class token, then two rows of a step from left to right
    wider = interpolate_positions(positions, 4)[:, 0]
    # By hand: the outer centres lie a quarter of a patch beyond the edge, where the border patch repeats.
    row = [-0.10546875, 0.2265625, 0.7734375, 1.10546875]
    np.testing.assert_allclose(wider, [9, *(row * 4)], atol=1e-6)
    np.testing.assert_array_equal(interpolate_positions(positions, 2), positions)


def test_positions_must_be_a_square():
    with pytest.raises(ValueError, match="got 4 rows"):
        interpolate_positions(np.zeros((4, 2), np.float32), 3)


def test_normalise_as_recorded(shared):
    recorded = json.loads((shared / "golden" / "11_frames.json").read_text())
    assert (tuple(recorded["mean"]), tuple(recorded["std"])) == (CLIP_MEAN, CLIP_STD)
    arrays = golden.load_recording(shared, "11_frames")
    pixels = jnp.asarray(arrays["raw_clip_cthw"].astype(np.uint8).transpose(1, 2, 3, 0))
    # One rounding of the division, one of the subtraction.
    np.testing.assert_allclose(normalise_frames(pixels), arrays["eval_out"].transpose(1, 2, 3, 0), rtol=0, atol=5e-7)


def test_normalise():
    pixels = jnp.asarray([[0, 0, 0], [255, 255, 255]], jnp.uint8)
    expected = [[-1.7922626, -1.7520971, -1.4802198], [1.9303361, 2.0748837, 2.1458969]]
    np.testing.assert_allclose(normalise_frames(pixels), expected, rtol=1e-6)
    assert normalise_frames(pixels, jnp.bfloat16).dtype == jnp.bfloat16


def transformers_hidden_states(config, tensors, frames):
    """Return the hidden states of transformers' model (depth + 1, F, S, D): the embedding, then each block's output."""
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415

    model = transformers.Blip2VisionModel(
        transformers.Blip2VisionConfig(
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.depth,
            num_attention_heads=config.heads,
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            qkv_bias=True,
        )
    ).eval()
    renames = {
        "cls_token": "embeddings.class_embedding",
        "pos_embed": "embeddings.position_embedding",
        "patch_embed.proj": "embeddings.patch_embedding",
        "blocks": "encoder.layers",
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn": "self_attn",
        "self_attn.proj": "self_attn.projection",
    }
    theirs = {}
    for name, tensor in tensors.items():
        for old, new in renames.items():
            name = name.replace(old, new)  # noqa: PLW2901
        theirs[name] = torch.from_numpy(tensor)
    for layer in range(config.depth):
        start = f"encoder.layers.{layer}.self_attn"
        q, v = theirs.pop(f"{start}.q_bias"), theirs.pop(f"{start}.v_bias")
        theirs[f"{start}.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    mismatch = model.load_state_dict(theirs, strict=False)
    assert not mismatch.unexpected_keys
    assert set(mismatch.missing_keys) == {"post_layernorm.weight", "post_layernorm.bias"}
    with torch.no_grad():
        pixels = torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2)
        return torch.stack(model(pixels, output_hidden_states=True).hidden_states).numpy()


def test_agrees_with_transformers():
    config = VitConfig(image_size=12, patch_size=4, width=24, depth=3, heads=3, mlp_width=40)
    vit, tensors = deterministic_vit(config)
    frames = jax.random.normal(jax.random.key(0), (2, 12, 12, 3))
    theirs = oracle("vit", lambda: {"states": transformers_hidden_states(config, tensors, frames)})
    embedded, *blocks = theirs["states"]
    np.testing.assert_allclose(vit.embed_patches(frames), embedded, **CLOSE)
    np.testing.assert_allclose(jax.jit(vit.hidden_states)(frames), blocks, **CLOSE)


def test_known_outputs_of_deterministic_weights():
    vit, _ = deterministic_vit(MINUTE)
    frames = jnp.cos(jnp.arange(8 * 8 * 3, dtype=jnp.float32)).reshape(1, 8, 8, 3)
    expected = [[0.76851, -0.71029, -0.5419, 0.54337], [0.98058, -0.98634, -1.28623, -0.43989]]  # transformers'
    np.testing.assert_allclose(encode(vit, frames)[0, [0, 4], :4], expected, **CLOSE)


def test_frames_do_not_depend_on_each_other(tiny, frames):
    alone = encode(tiny, frames[1:])
    np.testing.assert_allclose(encode(tiny, frames)[1:], alone, **CLOSE)


def test_bfloat16_stays_near_float32(tiny, frames):
    half = encode(tiny, frames.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: up to 0.4 % an operation, less on average.
    full = encode(tiny, frames)
    assert jnp.linalg.norm(half.astype(jnp.float32) - full) < 0.01 * jnp.linalg.norm(full)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_remat_changes_no_gradient(remat):
    small, _ = deterministic_vit(MINUTE)
    frames = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))

    def gradient(frames, remat):
        return jax.jit(jax.grad(lambda frames: jnp.square(small(frames, remat=remat)).mean()))(frames)

    np.testing.assert_allclose(gradient(frames, remat), gradient(frames, "none"), rtol=1e-4, atol=1e-8)


def test_wrong_sizes_are_named(tiny):
    with pytest.raises(ValueError, match=r"\(1, 64, 56, 3\).*56 x 56"):
        tiny(jnp.zeros((1, 64, 56, 3)))
    with pytest.raises(ValueError, match="image_size: must be a multiple of patch_size=4, got 9"):
        dataclasses.replace(MINUTE, image_size=9)
    with pytest.raises(ValueError, match="width: must be a multiple of heads=3, got 8"):
        dataclasses.replace(MINUTE, heads=3)


@pytest.mark.parametrize(
    ("config", "tokens"), [(VitConfig.eva_g(), 257), (VitConfig.small(), 197), (VitConfig.tiny(), 50)]
)
def test_named_sizes(config, tokens):
    vit = nnx.eval_shape(lambda: Vit(config, rngs=nnx.Rngs(0)))
    frames = jax.ShapeDtypeStruct((3, config.image_size, config.image_size, 3), jnp.bfloat16)
    assert nnx.eval_shape(lambda vit, frames: vit(frames), vit, frames).shape == (3, tokens, config.width)
