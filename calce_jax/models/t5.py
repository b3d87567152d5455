"""Flan-T5: the encoder reads frames, times and text as one sequence, the decoder writes the windows.

Source: Raffel et al. 2020 (T5), Shazeer 2020 (gated GELU), in the sizes of Flan-T5. As in CALCE the gate is the exact
(erf) GELU and the head is not tied to the embedding.

Dimensions: B batch, L encoder positions, A answer positions, K beams, M longest answer, J = M K positions of a cache,
D width, N heads, H head width, F feed-forward width, V vocabulary, R relative-position buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from calce_jax.distributed.sharding import constrain_batch
from calce_jax.models.attention import Implementation, attention, join_heads, split_heads
from calce_jax.models.kv_cache import Kept, LayerCache, attention_to
from calce_jax.models.layers import Key, Keys, Linear, Remat, RMSNorm, dropout, gelu, scan, stack, unstack

BUCKETS, FARTHEST = 32, 128


@dataclass(frozen=True)
class T5Config:
    """Sizes. `width` of the stream, `head_width` and `heads` of attention, `mlp_width` of the gated feed-forward."""

    width: int
    heads: int
    head_width: int
    mlp_width: int
    encoder_depth: int
    decoder_depth: int
    vocab: int = 32128
    drop: float = 0.1
    eps: float = 1e-6
    attention: Implementation = "xla"

    @staticmethod
    def flan_xl() -> "T5Config":
        """Flan-T5-XL: 2.85 B parameters."""
        return T5Config(width=2048, heads=32, head_width=64, mlp_width=5120, encoder_depth=24, decoder_depth=24)

    @staticmethod
    def flan_xxl() -> "T5Config":
        """Flan-T5-XXL: 11.1 B parameters."""
        return T5Config(width=4096, heads=64, head_width=64, mlp_width=10240, encoder_depth=24, decoder_depth=24)

    @staticmethod
    def flan_small() -> "T5Config":
        """Flan-T5-small: 77 M parameters; a laptop trains it."""
        return T5Config(width=512, heads=6, head_width=64, mlp_width=1024, encoder_depth=8, decoder_depth=8)

    @staticmethod
    def tiny(vocab: int) -> "T5Config":
        """A size for tests and the demo."""
        return T5Config(
            width=64, heads=4, head_width=16, mlp_width=128, encoder_depth=3, decoder_depth=2, vocab=vocab, drop=0.05
        )


class Embedding(nnx.Module):
    """A table of vectors, looked up by index."""

    def __init__(self, size: int, width: int, *, rngs: nnx.Rngs):
        self.embedding = nnx.Param(0.5 * jax.random.normal(rngs.params(), (size, width), jnp.float32))

    def __call__(self, ids: Int[Array, "..."]) -> Float[Array, "... D"]:
        """Return the rows of the table, in the table's dtype."""
        return jnp.take(self.embedding[...], ids, axis=0)


class T5Attention(nnx.Module):
    """Projections of one attention, self or cross; scores are not scaled by the head width."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        inner = config.heads * config.head_width
        # Scores are not scaled down, so fresh queries are.
        self.q = Linear(config.width, inner, bias=False, gain=config.head_width**-0.5, rngs=rngs)
        self.k = Linear(config.width, inner, bias=False, rngs=rngs)
        self.v = Linear(config.width, inner, bias=False, rngs=rngs)
        self.o = Linear(inner, config.width, bias=False, rngs=rngs)
        self.heads, self.drop = config.heads, config.drop
        self.implementation: Implementation = config.attention

    def keys_values(
        self, memory: Float[Array, "B L D"], keys: Keys
    ) -> tuple[Float[Array, "B L N H"], Float[Array, "B L N H"]]:
        """Project what is looked at."""
        return (
            split_heads(self.k(memory, key=keys()), self.heads),
            split_heads(self.v(memory, key=keys()), self.heads),
        )

    def look(
        self,
        x: Float[Array, "B Q D"],
        key: Float[Array, "B L N H"],
        value: Float[Array, "B L N H"],
        keys: Keys,
        *,
        bias: Float[Array, "1 N #Q L"] | None = None,
        mask: Bool[Array, "#B #Q L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attend from `x` to projected keys and values."""
        query = split_heads(self.q(x, key=keys()), self.heads)
        seen = attention(
            query,
            key,
            value,
            bias=bias,
            mask=mask,
            drop=self.drop,
            drop_key=keys(),
            implementation=self.implementation,
        )
        return self.o(join_heads(seen), key=keys())

    def look_back(
        self,
        x: Float[Array, "B Q D"],
        kept: Kept,
        *,
        bias: Float[Array, "1 N #Q L"] | None = None,
        mask: Bool[Array, "#B #Q L"] | None = None,
    ) -> Float[Array, "B Q D"]:
        """Attend from `x` to what is kept."""
        query = split_heads(self.q(x), self.heads)
        return self.o(join_heads(attention_to(kept, query, bias=bias, mask=mask)))


class T5Mlp(nnx.Module):
    """Gated feed-forward with the erf GELU."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.wi_0 = Linear(config.width, config.mlp_width, bias=False, rngs=rngs)
        self.wi_1 = Linear(config.width, config.mlp_width, bias=False, rngs=rngs)
        self.wo = Linear(config.mlp_width, config.width, bias=False, rngs=rngs)
        self.drop = config.drop

    def __call__(self, x: Float[Array, "B L D"], keys: Keys) -> Float[Array, "B L D"]:
        """Widen, gate, narrow."""
        gated = gelu(self.wi_0(x, key=keys())) * self.wi_1(x, key=keys())
        return self.wo(dropout(gated, self.drop, keys()), key=keys())


class EncoderBlock(nnx.Module):
    """Self-attention, then feed-forward; norms before, residuals around."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.attention_norm = RMSNorm(config.width, eps=config.eps)
        self.attention = T5Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, eps=config.eps)
        self.mlp = T5Mlp(config, rngs=rngs)
        self.drop = config.drop

    def __call__(
        self,
        x: Float[Array, "B L D"],
        bias: Float[Array, "1 N L L"],
        mask: Bool[Array, "B 1 L"],
        key: Key,
    ) -> Float[Array, "B L D"]:
        """Return the stream after this block."""
        keys = Keys(key)
        normed = self.attention_norm(x)
        seen = self.attention.look(normed, *self.attention.keys_values(normed, keys), keys, bias=bias, mask=mask)
        x = x + dropout(seen, self.drop, keys())
        return x + dropout(self.mlp(self.mlp_norm(x), keys), self.drop, keys())


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.self_norm = RMSNorm(config.width, eps=config.eps)
        self.self_attention = T5Attention(config, rngs=rngs)
        self.cross_norm = RMSNorm(config.width, eps=config.eps)
        self.cross_attention = T5Attention(config, rngs=rngs)
        self.mlp_norm = RMSNorm(config.width, eps=config.eps)
        self.mlp = T5Mlp(config, rngs=rngs)
        self.drop = config.drop

    def __call__(
        self,
        x: Float[Array, "B A D"],
        memory: Float[Array, "B L D"],
        bias: Float[Array, "1 N A A"],
        mask: Bool[Array, "B 1 L"],
        key: Key,
    ) -> Float[Array, "B A D"]:
        """Return the stream after this block, for a whole answer at once."""
        keys = Keys(key)
        normed = self.self_norm(x)
        causal = jnp.tril(jnp.ones((1, x.shape[1], x.shape[1]), bool))
        own = self.self_attention.keys_values(normed, keys)
        x = x + dropout(self.self_attention.look(normed, *own, keys, bias=bias, mask=causal), self.drop, keys())
        other = self.cross_attention.keys_values(memory, keys)
        seen = self.cross_attention.look(self.cross_norm(x), *other, keys, mask=mask)
        x = x + dropout(seen, self.drop, keys())
        return x + dropout(self.mlp(self.mlp_norm(x), keys), self.drop, keys())

    def step(
        self,
        x: Float[Array, "B K D"],
        layer: LayerCache,
        at: Int[Array, ""],
        *,
        bias: Float[Array, "1 N 1 J"],
        past: Bool[Array, "B K J"],
        mask: Bool[Array, "B 1 L"],
    ) -> tuple[Float[Array, "B K D"], LayerCache]:
        """Advance every beam by one token.

        The beams of a sample are query positions, so what it keeps is read once for all of them.
        """
        normed = self.self_norm(x)
        new = self.self_attention.keys_values(normed, Keys(None))
        layer = layer.with_own(*new, at * x.shape[1])
        x = x + self.self_attention.look_back(normed, layer.own, bias=bias, mask=past)
        x = x + self.cross_attention.look_back(self.cross_norm(x), layer.cross, mask=mask)
        return x + self.mlp(self.mlp_norm(x), Keys(None)), layer


class Encoder(nnx.Module):
    """The blocks of the encoder and the relative-position table they share."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.relative_bias = Embedding(BUCKETS, config.heads, rngs=rngs)
        self.blocks = stack(lambda rngs: EncoderBlock(config, rngs=rngs), config.encoder_depth, rngs)
        self.final_norm = RMSNorm(config.width, eps=config.eps)


class Decoder(nnx.Module):
    """The blocks of the decoder and the relative-position table they share."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.relative_bias = Embedding(BUCKETS, config.heads, rngs=rngs)
        self.blocks = stack(lambda rngs: DecoderBlock(config, rngs=rngs), config.decoder_depth, rngs)
        self.final_norm = RMSNorm(config.width, eps=config.eps)


class T5(nnx.Module):
    """Encoder, decoder, embedding and head."""

    def __init__(self, config: T5Config, *, rngs: nnx.Rngs):
        self.shared = Embedding(config.vocab, config.width, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.lm_head = Linear(config.width, config.vocab, bias=False, rngs=rngs)
        self.config = config

    def encode(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], *, key: Key = None, remat: Remat = "none"
    ) -> Float[Array, "B L D"]:
        """Encode embeddings; positions where `mask` is False are not looked at, and mean nothing in the result."""
        keys, drop = Keys(key), self.config.drop
        bias = self._bias(self.encoder.relative_bias, x.shape[1], x.dtype, both_ways=True)

        def body(block: EncoderBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            return block(x, bias, mask[:, None], key), None

        x, _ = scan(self.encoder.blocks, body, dropout(x, drop, keys()), key=keys(), remat=remat)
        return dropout(self.encoder.final_norm(x), drop, keys())

    def decode(
        self,
        ids: Int[Array, "B A"],
        memory: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        *,
        key: Key = None,
        remat: Remat = "none",
    ) -> Float[Array, "B A V"]:
        """Return the logits after each of the given tokens (the first being the start token), all at once."""
        keys, drop = Keys(key), self.config.drop
        bias = self._bias(self.decoder.relative_bias, ids.shape[1], memory.dtype, both_ways=False)

        def body(block: DecoderBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            return block(x, memory, bias, mask[:, None], key), None

        x = dropout(self.shared(ids).astype(memory.dtype), drop, keys())
        x, _ = scan(self.decoder.blocks, body, x, key=keys(), remat=remat)
        return self.lm_head(dropout(self.decoder.final_norm(x), drop, keys()), key=keys())

    def decoder_blocks(self) -> list[DecoderBlock]:
        """Return the decoder's blocks one by one, for `step`."""
        return unstack(self.decoder.blocks)

    def start(
        self, blocks: Sequence[DecoderBlock], memory: Float[Array, "B L D"], beams: int, length: int
    ) -> tuple[LayerCache, ...]:
        """Return a cache for `beams` answers of at most `length` tokens about each encoded sample.

        The encoder's keys and values are kept once a sample, not once a beam. Those of the answers stay where they were
        written, token by token, K beams each; which of them belong to a beam is said by a mask, so nothing is moved
        when beams are dropped and doubled.
        """
        crosses = [Kept.of(*block.cross_attention.keys_values(memory, Keys(None))) for block in blocks]
        return tuple(LayerCache(cross, cross.empty(length * beams)) for cross in crosses)

    def step(
        self,
        blocks: Sequence[DecoderBlock],
        ids: Int[Array, "B K"],
        cache: tuple[LayerCache, ...],
        at: Int[Array, ""],
        *,
        rows: Int[Array, "B K M"],
        mask: Bool[Array, "B L"],
    ) -> tuple[Float[Array, "B K V"], tuple[LayerCache, ...]]:
        """Return the logits after token number `at` of every beam, and the cache with that token in it.

        Args:
          blocks: from `decoder_blocks`.
          ids: the tokens before.
          cache: from `start` or the call before.
          at: number of the token.
          rows: which beam each beam's tokens were written by; at `at` each its own.
          mask: which positions of the encoder count.
        """
        dtype, (batch, beams, length) = cache[0].own.key.dtype, rows.shape
        numbers = jnp.arange(length)
        bias = self._looked_up(self.decoder.relative_bias, numbers[None] - at, dtype, both_ways=False)
        bias = jnp.repeat(bias, beams, axis=-1)
        past = (numbers <= at)[None, None, :, None] & (rows[..., None] == jnp.arange(beams)[None, None, None])
        past = past.reshape(batch, beams, length * beams)
        x, caches = self.shared(ids).astype(dtype), []
        for block, layer in zip(blocks, cache, strict=True):
            x, layer = block.step(x, layer, at, bias=bias, past=past, mask=mask[:, None])  # noqa: PLW2901
            x = constrain_batch(x)
            caches.append(layer)
        return self.lm_head(self.decoder.final_norm(x)), tuple(caches)

    def _bias(self, table: Embedding, length: int, dtype: jnp.dtype, *, both_ways: bool) -> Float[Array, "1 N L L"]:
        at = jnp.arange(length)
        return self._looked_up(table, at[None] - at[:, None], dtype, both_ways=both_ways)

    def _looked_up(
        self, table: Embedding, distance: Int[Array, "Q L"], dtype: jnp.dtype, *, both_ways: bool
    ) -> Float[Array, "1 N Q L"]:
        buckets = relative_bucket(distance, both_ways=both_ways)
        return table(buckets).astype(dtype).transpose(2, 0, 1)[None]


def relative_bucket(distance: Int[Array, "Q L"], *, both_ways: bool) -> Int[Array, "Q L"]:
    """Bucket of `key position - query position`: exact when near, logarithmic up to 128 away, one bucket beyond.

    The encoder looks both ways and gives each direction half of the 32 buckets; the decoder looks only back.
    """
    half = BUCKETS // 2 if both_ways else BUCKETS
    ahead = jnp.where(distance > 0, half, 0) if both_ways else jnp.zeros_like(distance)
    away = jnp.abs(distance) if both_ways else jnp.maximum(-distance, 0)
    exact = half // 2
    grown = jnp.log(jnp.maximum(away, 1).astype(jnp.float32) / exact) / jnp.log(FARTHEST / exact) * (half - exact)
    far = jnp.minimum(exact + grown.astype(jnp.int32), half - 1)
    return ahead + jnp.where(away < exact, away, far)
