"""The Q-Former: learned queries attend to a frame's tokens; its BERT path embeds sentences.

Source: BLIP-2 (Li et al. 2023). A post-norm BERT in which every second layer has cross-attention to the frame. Both
paths share self-attention and the embedding norm; each has its own feed-forward. CALCE uses no pooler and no language
head.

Dimensions: F frames, P image tokens of a frame, I image width, Q query tokens, S sentences, U tokens of a sentence, D
width, K depth + 1; in attention B frames or sentences, L query positions, M key positions.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from calce_jax.config import AttentionImplementation, RematPolicy
from calce_jax.models.attention import attention, join_heads, split_heads
from calce_jax.models.calce_sizes import QFormerConfig
from calce_jax.models.layers import Key, KeyStream, LayerNorm, Linear, dropout, gelu, scan_blocks, stack_blocks

PAD_ID = 0  # BERT's id of [PAD]


class BertAttention(nnx.Module):
    """Attention with its residual and the norm after it."""

    def __init__(self, config: QFormerConfig, memory_width: int, *, rngs: nnx.Rngs):
        self.q = Linear(config.width, config.width, rngs=rngs)
        self.k = Linear(memory_width, config.width, rngs=rngs)
        self.v = Linear(memory_width, config.width, rngs=rngs)
        self.o = Linear(config.width, config.width, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.heads, self.dropout_rate = config.heads, config.dropout_rate
        self.scale = (config.width // config.heads) ** -0.5
        self.implementation: AttentionImplementation = config.attention

    def __call__(
        self,
        x: Float[Array, "B L D"],
        memory: Float[Array, "B M I"],
        keys: KeyStream,
        *,
        mask: Bool[Array, "B 1 M"] | None = None,
    ) -> Float[Array, "B L D"]:
        """Attend from `x` to `memory`; add and normalise."""
        query = split_heads(self.q(x), self.heads)
        key, value = split_heads(self.k(memory), self.heads), split_heads(self.v(memory), self.heads)
        attended = attention(
            query,
            key,
            value,
            scale=self.scale,
            mask=mask,
            dropout_rate=self.dropout_rate,
            dropout_key=keys(),
            implementation=self.implementation,
        )
        return self.norm(x + dropout(self.o(join_heads(attended)), self.dropout_rate, keys()))


class BertMlp(nnx.Module):
    """Feed-forward with the erf GELU, its residual and the norm after it."""

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs):
        self.wi = Linear(config.width, config.mlp_width, rngs=rngs)
        self.wo = Linear(config.mlp_width, config.width, rngs=rngs)
        self.norm = LayerNorm(config.width, eps=config.eps)
        self.dropout_rate = config.dropout_rate

    def __call__(self, x: Float[Array, "B L D"], keys: KeyStream) -> Float[Array, "B L D"]:
        """Return norm(x + linear(gelu(linear(x))))."""
        y = self.wo(gelu(self.wi(x)))
        return self.norm(x + dropout(y, self.dropout_rate, keys()))


class QFormerBlock(nnx.Module):
    """One layer without its cross-attention: self-attention, and a feed-forward for each path."""

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs):
        self.attention = BertAttention(config, config.width, rngs=rngs)
        self.query_mlp = BertMlp(config, rngs=rngs)
        self.text_mlp = BertMlp(config, rngs=rngs)


class QFormer(nnx.Module):
    """The visual path (`encode_images`) and BERT (`encode_text`).

    Layers and cross-attentions are two stacks, of length `depth` and `cross_depth`: the text path scans the first, the
    visual path scans both in groups of `cross_attention_frequency` layers.
    """

    def __init__(self, config: QFormerConfig, *, rngs: nnx.Rngs):
        def normal(*shape: int) -> Float[Array, "size D"]:
            return 0.02 * jax.random.normal(rngs.params(), shape, jnp.float32)

        self.queries = nnx.Param(normal(config.query_tokens, config.width))
        self.words = nnx.Param(normal(config.vocab, config.width))
        self.positions = nnx.Param(normal(config.max_positions, config.width))
        self.embedding_norm = LayerNorm(config.width, eps=config.eps)
        self.blocks = stack_blocks(lambda rngs: QFormerBlock(config, rngs=rngs), config.depth, rngs)
        self.cross = stack_blocks(
            lambda rngs: BertAttention(config, config.image_width, rngs=rngs), config.cross_depth, rngs
        )
        self.config = config

    def encode_images(
        self, image_tokens: Float[Array, "F P I"], *, key: Key = None, remat: RematPolicy = "none"
    ) -> Float[Array, "F Q D"]:
        """Return the query tokens of each frame, in the dtype of the image tokens.

        Args:
          image_tokens: tokens of each frame after `ln_vision`, without padding.
          key: enables dropout.
          remat: what the backward pass keeps of each group of layers.
        """
        return self._encode_images(image_tokens, key, remat, collect=False)[0]

    def image_hidden_states(self, image_tokens: Float[Array, "F P I"]) -> Float[Array, "K F Q D"]:
        """Return the normalised queries and the output of each layer, for tests."""
        return jnp.concatenate(self._encode_images(image_tokens, None, "none", collect=True)[1])

    def encode_text(
        self, ids: Int[Array, "S U"], *, dtype: DTypeLike = jnp.float32, key: Key = None
    ) -> Float[Array, "S U D"]:
        """Return BERT's last hidden states, computed in `dtype`.

        Args:
          ids: WordPiece ids from [CLS] to [SEP], then padding of 0, which is masked; states there are meaningless.
          dtype: of the activations.
          key: enables dropout.

        Raises:
          ValueError: the sentences are longer than `max_positions`.
        """
        if ids.shape[1] > self.config.max_positions:
            raise ValueError(
                f"ids: {ids.shape[1]} tokens exceed max_positions={self.config.max_positions}; truncate the sentences"
            )
        keys, mask = KeyStream(key), (ids != PAD_ID)[:, None]
        position_embeddings = self.positions[...][: ids.shape[1]].astype(dtype)
        x = self.embedding_norm(jnp.take(self.words[...], ids, axis=0).astype(dtype) + position_embeddings[None])

        def body(block: QFormerBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            keys = KeyStream(key)
            return block.text_mlp(block.attention(x, x, keys, mask=mask), keys), None

        return scan_blocks(self.blocks, body, dropout(x, self.config.dropout_rate, keys()), key=keys())[0]

    def embed_sentences(
        self, ids: Int[Array, "S U"], *, dtype: DTypeLike = jnp.float32, key: Key = None
    ) -> Float[Array, "S D"]:
        """Return the last hidden state at [CLS] of each sentence, without BERT's pooler."""
        return self.encode_text(ids, dtype=dtype, key=key)[:, 0]

    def _encode_images(
        self, image_tokens: Float[Array, "F P I"], key: Key, remat: RematPolicy, *, collect: bool
    ) -> tuple[Float[Array, "F Q D"], list[Array]]:
        """Run the visual path: all full groups of layers in one scan, then the remaining layers as a shorter group."""
        keys, group_size = KeyStream(key), self.config.cross_attention_frequency
        num_groups, num_remaining = divmod(self.config.depth, group_size)
        graph, block_params = nnx.split(self.blocks)
        cross_graph, cross_params = nnx.split(self.cross)

        def apply_group(cross: BertAttention, x: Array, group_params: Any, key: Key) -> tuple[Array, Array | None]:
            keys, hidden_states = KeyStream(key), []
            for layer_index in range(jax.tree.leaves(group_params)[0].shape[0]):
                block = nnx.merge(graph, _slice_params(group_params, layer_index))
                x = block.attention(x, x, keys)
                x = cross(x, image_tokens, keys) if layer_index == 0 else x
                x = block.query_mlp(x, keys)
                hidden_states.append(x)
            return x, jnp.stack(hidden_states) if collect else None

        queries = self.embedding_norm(self.queries[...].astype(image_tokens.dtype))
        x = jnp.broadcast_to(queries[None], (image_tokens.shape[0], *queries.shape))
        x = dropout(x, self.config.dropout_rate, keys())
        states = [x[None]]
        for start, groups, size in ((0, num_groups, group_size), (num_groups, 1, num_remaining)):
            if groups * size == 0:
                continue
            cross_blocks = nnx.merge(cross_graph, _slice_params(cross_params, slice(start, start + groups)))
            first_layer = start * group_size
            grouped_params = jax.tree.map(
                lambda p, groups=groups, size=size: p.reshape(groups, size, *p.shape[1:]),
                _slice_params(block_params, slice(first_layer, first_layer + groups * size)),
            )
            x, hidden_states = scan_blocks(cross_blocks, apply_group, x, grouped_params, key=keys(), remat=remat)
            if collect:
                states.append(hidden_states.reshape(-1, *x.shape))
        return x, states


def _slice_params(stacked: Any, index: int | slice) -> Any:
    return jax.tree.map(lambda p: p[index], stacked)
