"""Flan-T5, an encoder-decoder transformer with relative position biases.

Source: Raffel et al. 2020 (T5), Shazeer 2020 (gated GELU), in the sizes of Flan-T5. As in CALCE the gate is the exact
(erf) GELU and the head is not tied to the embedding.

Dimensions: B batch, L encoder positions, A answer positions, K beams, M longest answer, J = M K positions of a cache,
D width, N heads, H head width, F feed-forward width, V vocabulary, R relative-position buckets.
"""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from calce_jax.config import AttentionImplementation, RematPolicy
from calce_jax.distributed.sharding import constrain_batch, gather_params
from calce_jax.models.attention import attention, join_heads, split_heads
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.kv_cache import KVCache, LayerCache, cached_attention
from calce_jax.models.layers import (
    Key,
    KeyStream,
    Linear,
    RMSNorm,
    dropout,
    gelu,
    scan_blocks,
    stack_blocks,
    unstack_blocks,
)

DECODER_START_ID, EOS_ID = 0, 1  # 0 is also padding
RELATIVE_BUCKETS, RELATIVE_MAX_DISTANCE = 32, 128


class Embedding(nnx.Module):
    """An embedding table (size, D)."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.5 * jax.random.normal(rngs.params(), (size, width), jnp.float32))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Return the rows of the table, in the table's dtype."""
        return jnp.take(self.embedding[...], ids, axis=0)


class T5Attention(nnx.Module):
    """Self- or cross-attention; scores are not scaled by 1/sqrt(H)."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        inner = config.heads * config.head_width
        # Scores are not scaled, so the initial query kernel is.
        self.q = Linear(config.width, inner, bias=False, gain=config.head_width**-0.5, rngs=rngs)
        self.k = Linear(config.width, inner, bias=False, rngs=rngs)
        self.v = Linear(config.width, inner, bias=False, rngs=rngs)
        self.o = Linear(inner, config.width, bias=False, rngs=rngs)
        self.heads, self.dropout_rate = config.heads, config.dropout_rate
        self.implementation: AttentionImplementation = config.attention

    def project_keys_values(
        self, memory: Float[Array, "B L D"], keys: KeyStream
    ) -> tuple[Float[Array, "B L N H"], Float[Array, "B L N H"]]:
        """Return the projected keys and values of `memory`."""
        return (
            split_heads(self.k(memory, key=keys()), self.heads),
            split_heads(self.v(memory, key=keys()), self.heads),
        )

    def attend(
        self,
        x: Float[Array, "B Q D"],
        key: Float[Array, "B L N H"],
        value: Float[Array, "B L N H"],
        keys: KeyStream,
        *,
        bias: Float[Array, "1 N #Q L"] | None = None,
        mask: Bool[Array, "#B #Q L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attend from `x` to projected keys and values."""
        query = split_heads(self.q(x, key=keys()), self.heads)
        attended = attention(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            dropout_rate=self.dropout_rate,
            dropout_key=keys(),
            implementation=self.implementation,
        )
        return self.o(join_heads(attended), key=keys())

    def attend_cached(
        self,
        x: Float[Array, "B Q D"],
        cache: KVCache,
        *,
        bias: Float[Array, "1 N #Q L"] | None = None,
        mask: Bool[Array, "#B #Q L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attend from `x` to cached keys and values, without dropout."""
        query = split_heads(self.q(x), self.heads)
        return self.o(join_heads(cached_attention(cache, query, bias=bias, mask=mask)))


class T5Mlp(nnx.Module):
    """Gated feed-forward with the erf GELU."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.wi_0 = Linear(config.width, config.mlp_width, bias=False, rngs=rngs)
        self.wi_1 = Linear(config.width, config.mlp_width, bias=False, rngs=rngs)
        self.wo = Linear(config.mlp_width, config.width, bias=False, rngs=rngs)
        self.dropout_rate = config.dropout_rate

    def __call__(self, x: Float[Array, "B L D"], keys: KeyStream) -> Float[Array, "B L D"]:
        """Return linear(gelu(linear(x)) * linear(x))."""
        gated = gelu(self.wi_0(x, key=keys())) * self.wi_1(x, key=keys())
        return self.wo(dropout(gated, self.dropout_rate, keys()), key=keys())


class EncoderBlock(nnx.Module):
    """Self-attention, then feed-forward; norms before, residuals around."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, eps=config.eps)
        self.attention = T5Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, eps=config.eps)
        self.mlp = T5Mlp(config, rngs=rngs)
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "B L D"],
        bias: Float[Array, "1 N L L"],
        mask: Bool[Array, "B 1 L"],
        key: Key,
    ) -> Float[Array, "B L D"]:
        """Return the activations after this block."""
        keys = KeyStream(key)
        normed = self.attention_norm(x)
        attended = self.attention.attend(
            normed, *self.attention.project_keys_values(normed, keys), keys, bias=bias, mask=mask
        )
        x = x + dropout(attended, self.dropout_rate, keys())
        return x + dropout(self.mlp(self.mlp_norm(x), keys), self.dropout_rate, keys())


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.self_norm = RMSNorm(config.width, eps=config.eps)
        self.self_attention = T5Attention(config, rngs=rngs)
        self.cross_norm = RMSNorm(config.width, eps=config.eps)
        self.cross_attention = T5Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, eps=config.eps)
        self.mlp = T5Mlp(config, rngs=rngs)
        self.dropout_rate = config.dropout_rate

    def __call__(
        self,
        x: Float[Array, "B A D"],
        memory: Float[Array, "B L D"],
        bias: Float[Array, "1 N A A"],
        mask: Bool[Array, "B 1 L"],
        key: Key,
    ) -> Float[Array, "B A D"]:
        """Return the activations after this block for all answer positions."""
        keys = KeyStream(key)
        normed = self.self_norm(x)
        causal = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool))
        self_keys_values = self.self_attention.project_keys_values(normed, keys)
        x = x + dropout(
            self.self_attention.attend(normed, *self_keys_values, keys, bias=bias, mask=causal),
            self.dropout_rate,
            keys(),
        )
        cross_keys_values = self.cross_attention.project_keys_values(memory, keys)
        attended = self.cross_attention.attend(self.cross_norm(x), *cross_keys_values, keys, mask=mask)
        x = x + dropout(attended, self.dropout_rate, keys())
        return x + dropout(self.mlp(self.mlp_norm(x), keys), self.dropout_rate, keys())

    def decode_step(
        self,
        x: Float[Array, "B K D"],
        cache: LayerCache,
        position: Int[Array, ""],
        *,
        bias: Float[Array, "1 N 1 J"],
        self_mask: Bool[Array, "B K J"],
        mask: Bool[Array, "B 1 L"],
    ) -> tuple[Float[Array, "B K D"], LayerCache]:
        """Decode one token of every beam.

        The beams of a sample are query positions of one attention, so its cache is read once for all of them.
        """
        normed = self.self_norm(x)
        new_keys_values = self.self_attention.project_keys_values(normed, KeyStream(None))
        cache = cache.update_self(*new_keys_values, position * x.shape[1])
        x = x + self.self_attention.attend_cached(normed, cache.self_attention, bias=bias, mask=self_mask)
        x = x + self.cross_attention.attend_cached(self.cross_norm(x), cache.cross_attention, mask=mask)
        return x + self.mlp(self.mlp_norm(x), KeyStream(None)), cache


class Encoder(nnx.Module):
    """The encoder's blocks, and the relative position biases that they share."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.relative_bias = Embedding(RELATIVE_BUCKETS, config.heads, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: EncoderBlock(config, rngs=rngs), config.encoder_depth, rngs)
        self.final_norm = RMSNorm(config.width, eps=config.eps)


class Decoder(nnx.Module):
    """The decoder's blocks, and the relative position biases that they share."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.relative_bias = Embedding(RELATIVE_BUCKETS, config.heads, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: DecoderBlock(config, rngs=rngs), config.decoder_depth, rngs)
        self.final_norm = RMSNorm(config.width, eps=config.eps)


class T5(nnx.Module):
    """Embedding, encoder, decoder and head."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.shared = Embedding(config.vocab, config.width, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.lm_head = Linear(config.width, config.vocab, bias=False, rngs=rngs)
        self.config = config

    @jax.named_scope("t5_encoder")
    def encode(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, key: Key = None, remat: RematPolicy = "none"
    ) -> Float[Array, "B L D"]:
        """Encode embeddings; where `mask` is False the result is meaningless, and no position attends there."""
        keys, dropout_rate = KeyStream(key), self.config.dropout_rate
        bias = self._position_bias(self.encoder.relative_bias, x.shape[1], x.dtype, bidirectional=True)

        def body(block: EncoderBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            return block(x, bias, mask[:, None], key), None

        x, _ = scan_blocks(self.encoder.blocks, body, dropout(x, dropout_rate, keys()), key=keys(), remat=remat)
        return dropout(self.encoder.final_norm(x), dropout_rate, keys())

    @jax.named_scope("t5_decoder")
    def decode(
        self,
        ids: Int[Array, "B A"],
        memory: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        *,
        key: Key = None,
        remat: RematPolicy = "none",
    ) -> Float[Array, "B A V"]:
        """Return the logits after each of the given tokens, of which the first is the start token."""
        keys, dropout_rate = KeyStream(key), self.config.dropout_rate
        bias = self._position_bias(self.decoder.relative_bias, ids.shape[1], memory.dtype, bidirectional=False)

        def body(block: DecoderBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            return block(x, memory, bias, mask[:, None], key), None

        x = dropout(self.shared(ids).astype(memory.dtype), dropout_rate, keys())
        x, _ = scan_blocks(self.decoder.blocks, body, x, key=keys(), remat=remat)
        return self.lm_head(dropout(self.decoder.final_norm(x), dropout_rate, keys()), key=keys())

    def gathered(self) -> "T5":
        """Return the model for a loop of `decode_step`, with weights gathered once, see `gather_params`."""
        graph, weights = nnx.split(self)
        return nnx.merge(graph, gather_params(weights))

    def decoder_blocks(self) -> list[DecoderBlock]:
        """Return the decoder's blocks as a list, for `decode_step`."""
        return unstack_blocks(self.decoder.blocks)

    @jax.named_scope("t5_decoder")
    def init_cache(
        self, blocks: Sequence[DecoderBlock], memory: Float[Array, "B L D"], num_beams: int, max_length: int
    ) -> tuple[LayerCache, ...]:
        """Return a cache for `num_beams` answers of at most `max_length` tokens for each encoded sample.

        Keys and values of the encoder are cached once a sample, not once a beam. Those of the answers lie at position
        token K + beam and are never moved: a mask selects the positions that belong to a beam.
        """
        cross_caches = [
            KVCache.from_projections(*block.cross_attention.project_keys_values(memory, KeyStream(None)))
            for block in blocks
        ]
        return tuple(LayerCache(cross, cross.init(max_length * num_beams)) for cross in cross_caches)

    @jax.named_scope("t5_decoder")
    def decode_step(
        self,
        blocks: Sequence[DecoderBlock],
        ids: Int[Array, "B K"],
        cache: tuple[LayerCache, ...],
        position: Int[Array, ""],
        *,
        beam_indices: Int[Array, "B K M"],
        mask: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B K V"], tuple[LayerCache, ...]]:
        """Return the logits after input token `position` of every beam, and the cache with that token.

        Args:
          blocks: from `decoder_blocks`.
          ids: the input tokens.
          cache: from `init_cache` or the previous step.
          position: index of the input tokens in the answer.
          beam_indices: for each beam, the beam that wrote its token at each position; at `position` itself.
          mask: True for real positions of the encoder.
        """
        dtype, (batch, num_beams, length) = cache[0].self_attention.key.dtype, beam_indices.shape
        positions = jnp.arange(length)
        bias = self._relative_position_bias(
            self.decoder.relative_bias, positions[None] - position, dtype, bidirectional=False
        )
        bias = jnp.repeat(bias, num_beams, axis=-1)
        self_mask = (positions <= position)[None, None, :, None] & (
            beam_indices[..., None] == jnp.arange(num_beams)[None, None, None]
        )
        self_mask = self_mask.reshape(batch, num_beams, length * num_beams)
        x, caches = self.shared(ids).astype(dtype), []
        for block, layer in zip(blocks, cache, strict=True):
            x, layer = block.decode_step(x, layer, position, bias=bias, self_mask=self_mask, mask=mask[:, None])  # noqa: PLW2901
            x = constrain_batch(x)
            caches.append(layer)
        return self.lm_head(self.decoder.final_norm(x)), tuple(caches)

    def _position_bias(
        self, table: Embedding, length: int, dtype: jnp.dtype, *, bidirectional: bool
    ) -> Float[Array, "1 N L L"]:
        positions = jnp.arange(length)
        return self._relative_position_bias(
            table, positions[None] - positions[:, None], dtype, bidirectional=bidirectional
        )

    def _relative_position_bias(
        self, table: Embedding, relative_position: Int[Array, "Q L"], dtype: jnp.dtype, *, bidirectional: bool
    ) -> Float[Array, "1 N Q L"]:
        buckets = relative_position_bucket(relative_position, bidirectional=bidirectional)
        return table(buckets).astype(dtype).transpose(2, 0, 1)[None]


def relative_position_bucket(relative_position: Int[Array, "Q L"], *, bidirectional: bool) -> Int[Array, "Q L"]:
    """Return the bucket of key position - query position: exact when near, logarithmic to 128, one bucket beyond.

    If bidirectional (encoder), each direction has half of the 32 buckets; otherwise positive distances are in bucket 0.
    """
    num_buckets = RELATIVE_BUCKETS // 2 if bidirectional else RELATIVE_BUCKETS
    direction_offset = (
        jnp.where(relative_position > 0, num_buckets, 0) if bidirectional else jnp.zeros_like(relative_position)
    )
    distance_away = jnp.abs(relative_position) if bidirectional else jnp.maximum(-relative_position, 0)
    max_exact = num_buckets // 2
    far_bucket = jnp.full_like(distance_away, max_exact)
    for first_distance in _first_distances(num_buckets - max_exact, max_exact):
        far_bucket += (distance_away >= first_distance).astype(far_bucket.dtype)
    return direction_offset + jnp.where(distance_away < max_exact, distance_away, far_bucket)


def _first_distances(num_far_buckets: int, max_exact: int) -> list[int]:
    """Return the smallest distance of each logarithmic bucket after the first.

    In integers: distance E (M/E)^(k/K) begins bucket k of K, for E `max_exact` and M the largest distance. A logarithm
    on the device may put 16, 32 and 64, which are such beginnings in the encoder, into the bucket before.
    """

    def begins(bucket: int) -> int:
        power = max_exact ** (num_far_buckets - bucket) * RELATIVE_MAX_DISTANCE**bucket
        return next(distance for distance in itertools.count(max_exact) if distance**num_far_buckets >= power)

    return [begins(bucket) for bucket in range(1, num_far_buckets)]
