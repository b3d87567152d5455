"""The vision transformer (ViT); frames are encoded independently of each other.

Source: EVA (Fang et al. 2022), as BLIP-2 uses it: pre-norm blocks, a class token in front, learned positions, biases on
queries and values but not on keys, the exact (erf) GELU, and no norm after the last block.

Dimensions: F frames, H W pixels, P patches, S = 1 + P tokens of a frame, D width, Z blocks.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from calce_jax.config import AttentionImplementation, RematPolicy
from calce_jax.models.attention import attention, join_heads, split_heads
from calce_jax.models.calce_sizes import VitConfig
from calce_jax.models.layers import Key, LayerNorm, Linear, expand_dims_to, gelu, scan_blocks, stack_blocks

# Mean and standard deviation of CLIP's training images: red, green, blue.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class VitAttention(nnx.Module):
    """Self-attention over the tokens of a frame. Keys have no bias: it would cancel in the softmax."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        self.q = Linear(config.width, config.width, rngs=rngs)
        self.k = Linear(config.width, config.width, bias=False, rngs=rngs)
        self.v = Linear(config.width, config.width, rngs=rngs)
        self.o = Linear(config.width, config.width, rngs=rngs)
        self.heads, self.scale = config.heads, (config.width // config.heads) ** -0.5
        self.implementation: AttentionImplementation = config.attention

    def __call__(self, x: Float[Array, "F S D"]) -> Float[Array, "F S D"]:
        """Attend from every token to every token of its frame."""
        query, key, value = (split_heads(project(x), self.heads) for project in (self.q, self.k, self.v))
        attended = attention(query, key, value, scale=self.scale, implementation=self.implementation)
        return self.o(join_heads(attended))


class VitMlp(nnx.Module):
    """Feed-forward with the erf GELU."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        self.wi = Linear(config.width, config.mlp_width, rngs=rngs)
        self.wo = Linear(config.mlp_width, config.width, rngs=rngs)

    def __call__(self, x: Float[Array, "F S D"]) -> Float[Array, "F S D"]:
        """Return linear(gelu(linear(x)))."""
        return self.wo(gelu(self.wi(x)))


class VitBlock(nnx.Module):
    """Self-attention, then feed-forward; norms before, residuals around."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(config.width, eps=config.eps)
        self.attention = VitAttention(config, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width, eps=config.eps)
        self.mlp = VitMlp(config, rngs=rngs)

    def __call__(self, x: Float[Array, "F S D"]) -> Float[Array, "F S D"]:
        """Return the activations after this block."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class Vit(nnx.Module):
    """Vision transformer. It computes in the dtype of the frames and has no dropout, since CALCE never trains it."""

    def __init__(self, config: VitConfig, *, rngs: nnx.Rngs):
        self.patches = Linear(3 * config.patch_size**2, config.width, rngs=rngs)
        self.class_token = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.width,), jnp.float32))
        self.positions = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.num_tokens, config.width), jnp.float32)
        )
        self.blocks = stack_blocks(lambda rngs: VitBlock(config, rngs=rngs), config.depth, rngs)
        self.config = config

    def __call__(self, frames: Float[Array, "F H W 3"], *, remat: RematPolicy = "none") -> Float[Array, "F S D"]:
        """Return the tokens of each normalised frame, the class token first.

        Raises:
          ValueError: the frames are not `image_size` pixels high and wide.
        """

        def body(block: VitBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            return block(x), None

        return scan_blocks(self.blocks, body, self.embed_patches(frames), remat=remat)[0]

    def hidden_states(self, frames: Float[Array, "F H W 3"]) -> Float[Array, "Z F S D"]:
        """Return the output of every block, for tests."""

        def body(block: VitBlock, x: Array, _: None, key: Key) -> tuple[Array, Array]:
            x = block(x)
            return x, x

        return scan_blocks(self.blocks, body, self.embed_patches(frames))[1]

    def embed_patches(self, frames: Float[Array, "F H W 3"]) -> Float[Array, "F S D"]:
        """Return the input of the first block: the class token and projected patches, plus positions."""
        image_size, patch_size, grid_size = self.config.image_size, self.config.patch_size, self.config.grid_size
        if frames.shape[1:] != (image_size, image_size, 3):
            raise ValueError(
                f"frames: shape {frames.shape}, but the model takes {image_size} x {image_size} pixels; "
                "resize the frames, or convert the weights for another image_size"
            )
        num_frames, width = frames.shape[0], self.config.width
        patch_pixels = (
            frames.reshape(num_frames, grid_size, patch_size, grid_size, patch_size, 3)
            .swapaxes(2, 3)
            .reshape(num_frames, grid_size**2, -1)
        )
        class_tokens = jnp.broadcast_to(
            expand_dims_to(self.class_token[...].astype(frames.dtype), 3), (num_frames, 1, width)
        )
        return (
            jnp.concatenate([class_tokens, self.patches(patch_pixels)], axis=1)
            + self.positions[...].astype(frames.dtype)[None]
        )


def normalise_frames(frames: UInt8[Array, "*frames 3"], dtype: DTypeLike = jnp.float32) -> Float[Array, "*frames 3"]:
    """Scale pixels to 0..1, subtract CLIP's mean and divide by its standard deviation, in float32; cast to `dtype`."""
    scaled = frames.astype(jnp.float32) / 255.0
    mean, std = (
        expand_dims_to(jnp.asarray(channel_stat, jnp.float32), frames.ndim) for channel_stat in (CLIP_MEAN, CLIP_STD)
    )
    return ((scaled - mean) / std).astype(dtype)
