"""A cheap score of a part of a video for a sentence: which segments of a library are worth asking both stages about.

Two linear layers map the Q-Former's output and T5's word embeddings to vectors of one space. The score of a segment is
the highest cosine of its vectors with the vector of the sentence. Late interaction (ColBERT, Khattab and Zaharia 2020)
of images with one vector of text, which BLIP-2's image-text contrastive head also has.

Dimensions: T frames, Q query tokens of a frame, W width of the Q-Former, E width of T5, F pooled frames, G groups of
query tokens, V = F G vectors of a segment, D = `VECTOR_WIDTH`.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from calce_jax.batch import AnyArray
from calce_jax.models.products import matmul

MAX_FRAMES, MAX_GROUPS, VECTOR_WIDTH = 20, 4, 64
EPSILON = 1e-6


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SegmentRanker:
    """The two layers; x @ kernel + bias, scaled to length 1."""

    image_kernel: Float[AnyArray, "W D"]
    image_bias: Float[AnyArray, " D"]
    text_kernel: Float[AnyArray, "E D"]
    text_bias: Float[AnyArray, " D"]

    def embed_images(self, pooled: Float[AnyArray, "... W"]) -> Float[Array, "... D"]:
        """Return vectors of length 1 of what `pool_queries` returned."""
        flat = pooled.reshape(-1, pooled.shape[-1])
        return _embed(flat, self.image_kernel, self.image_bias).reshape(*pooled.shape[:-1], -1)

    def embed_texts(self, word_means: Float[AnyArray, "N E"]) -> Float[Array, "N D"]:
        """Return vectors of length 1 of sentences, each the mean of the embeddings of its words."""
        return _embed(word_means, self.text_kernel, self.text_bias)


def init_segment_ranker(image_width: int, text_width: int, key: jax.Array) -> SegmentRanker:
    """Return random layers for a Q-Former and a T5 of these widths."""
    image_key, text_key = jax.random.split(key)
    return SegmentRanker(
        image_kernel=image_width**-0.5 * jax.random.normal(image_key, (image_width, VECTOR_WIDTH), jnp.float32),
        image_bias=jnp.zeros(VECTOR_WIDTH, jnp.float32),
        text_kernel=text_width**-0.5 * jax.random.normal(text_key, (text_width, VECTOR_WIDTH), jnp.float32),
        text_bias=jnp.zeros(VECTOR_WIDTH, jnp.float32),
    )


def pooled_frames(num_frames: int) -> np.ndarray:
    """Return the indices of the frames that are used of T: all, or `MAX_FRAMES` that are evenly spaced."""
    return np.linspace(0, num_frames - 1, min(num_frames, MAX_FRAMES)).round().astype(int)


def pool_queries(queries: Float[AnyArray, "T Q W"]) -> Float[np.ndarray, "F G W"]:
    """Return the query tokens of `pooled_frames`, those of a frame averaged in groups of neighbours; float32."""
    frames = np.asarray(queries, np.float32)[pooled_frames(len(queries))]
    groups = np.array_split(np.arange(frames.shape[1]), min(frames.shape[1], MAX_GROUPS))
    return np.stack([frames[:, group].mean(axis=1) for group in groups], axis=1)


def _embed(
    x: Float[AnyArray, "N W"], kernel: Float[AnyArray, "W D"], bias: Float[AnyArray, " D"]
) -> Float[Array, "N D"]:
    x = matmul(jnp.asarray(x, jnp.float32), jnp.asarray(kernel)) + jnp.asarray(bias)[None]
    return x * jax.lax.rsqrt(jnp.square(x).sum(axis=-1, keepdims=True) + EPSILON)
