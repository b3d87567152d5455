"""Whisper, an encoder-decoder transformer for speech recognition on windows of 30 s.

Source: Radford et al. 2022, in all published sizes; numbers equal those of `transformers`' implementation.

Dimensions: B batch, F mel frames (3000 in 30 s), C mel bands, S encoder positions (F / 2), A tokens at a time, M cache
length, D width, N heads, H head width, V vocabulary, K heads whose attention is returned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from calce_jax.models.attention import attention, join_heads, split_heads
from calce_jax.models.kv_cache import KVCache, LayerCache, cached_attention, cached_attention_weights
from calce_jax.models.layers import (
    Key,
    LayerNorm,
    Linear,
    gelu,
    scan_blocks,
    stack_blocks,
    unstack_blocks,
)
from calce_jax.models.products import matmul_precision
from calce_jax.models.whisper_sizes import ENGLISH_SIZES, WHISPER_SIZES

# Query positions per attention product: a few hundred, so that their scores fit a CPU's cache.
QUERY_BLOCK_SIZE = 250


@dataclass(frozen=True)
class WhisperConfig:
    """Sizes: `width` D; heads, feed-forward widths and depths of encoder and decoder; `audio_positions` is S."""

    width: int
    encoder_heads: int
    decoder_heads: int
    encoder_mlp: int
    decoder_mlp: int
    encoder_depth: int
    decoder_depth: int
    vocab: int
    mel_bins: int = 80
    audio_positions: int = 1500
    text_positions: int = 448
    eps: float = 1e-5

    @property
    def mel_frames(self) -> int:
        """F, the mel frames of a window."""
        return 2 * self.audio_positions

    @staticmethod
    def from_name(size: str, *, english_only: bool = False) -> "WhisperConfig":
        """Return a published size.

        Args:
          size: a key of `WHISPER_SIZES`.
          english_only: the English-only variant, which exists up to "medium".

        Raises:
          ValueError: there is no such size.
        """
        if size not in WHISPER_SIZES or (english_only and size not in ENGLISH_SIZES):
            kind = "English-only size" if english_only else "size"
            raise ValueError(f"size: Whisper has no {kind} {size!r}; choose one of {', '.join(WHISPER_SIZES)}")
        width, heads, encoder_depth, decoder_depth = WHISPER_SIZES[size]
        is_v3 = size in ("large-v3", "turbo")
        return WhisperConfig(
            width=width,
            encoder_heads=heads,
            decoder_heads=heads,
            encoder_mlp=4 * width,
            decoder_mlp=4 * width,
            encoder_depth=encoder_depth,
            decoder_depth=decoder_depth,
            # v3 has one more language token; English-only models have one token less.
            vocab=51866 if is_v3 else 51864 if english_only else 51865,
            mel_bins=128 if is_v3 else 80,
        )

    @staticmethod
    def from_hugging_face(config: Mapping[str, Any]) -> "WhisperConfig":
        """Return the sizes in a model's `config.json`, given its parsed contents.

        Raises:
          ValueError: it is not a Whisper, lacks a field, or has a setting that no published Whisper has.
        """
        if config.get("model_type") != "whisper":
            raise ValueError(f"model_type: {config.get('model_type')!r} is not 'whisper'; give a Whisper model")
        if config.get("activation_function", "gelu") != "gelu" or config.get("scale_embedding", False):
            raise ValueError("activation_function, scale_embedding: must be 'gelu' and false, as in published models")
        fields = {
            "width": "d_model",
            "encoder_heads": "encoder_attention_heads",
            "decoder_heads": "decoder_attention_heads",
            "encoder_mlp": "encoder_ffn_dim",
            "decoder_mlp": "decoder_ffn_dim",
            "encoder_depth": "encoder_layers",
            "decoder_depth": "decoder_layers",
            "vocab": "vocab_size",
            "mel_bins": "num_mel_bins",
            "audio_positions": "max_source_positions",
            "text_positions": "max_target_positions",
        }
        if missing := [name for name in fields.values() if name not in config]:
            raise ValueError(f"{', '.join(missing)}: missing; download the model's config.json again")
        return WhisperConfig(**{field: int(config[name]) for field, name in fields.items()})


class WhisperAttention(nnx.Module):
    """Self- or cross-attention; keys have no bias."""

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.q = Linear(width, width, rngs=rngs)
        self.k = Linear(width, width, bias=False, rngs=rngs)
        self.v = Linear(width, width, rngs=rngs)
        self.o = Linear(width, width, rngs=rngs)
        self.heads, self.scale = heads, (width // heads) ** -0.5

    def project_keys_values(
        self, memory: Float[Array, "B S D"]
    ) -> tuple[Float[Array, "B S N H"], Float[Array, "B S N H"]]:
        """Return the projected keys and values of `memory`."""
        return split_heads(self.k(memory), self.heads), split_heads(self.v(memory), self.heads)

    def attend_cached(
        self, x: Float[Array, "B A D"], cache: KVCache, *, mask: Bool[Array, "B A L"] | None = None
    ) -> Float[Array, "B A D"]:
        """Attend from `x` to cached keys and values."""
        query = split_heads(self.q(x), self.heads)
        return self.o(join_heads(cached_attention(cache, query, scale=self.scale, mask=mask)))

    def cached_weights(self, x: Float[Array, "B A D"], cache: KVCache) -> Float[Array, "B N A L"]:
        """Return the float32 attention weights of `attend_cached` without a mask."""
        return cached_attention_weights(cache, split_heads(self.q(x), self.heads), scale=self.scale)

    def self_attend(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Attend from every position to all, in blocks of query positions."""
        batch, length, _ = x.shape
        key, value = self.project_keys_values(x)
        block = QUERY_BLOCK_SIZE if length % QUERY_BLOCK_SIZE == 0 else length
        query = split_heads(self.q(x), self.heads)
        query = jnp.swapaxes(query.reshape(batch, length // block, block, *query.shape[2:]), 0, 1)

        def attend_block(query: Float[Array, "B A N H"]) -> Float[Array, "B A N H"]:
            return attention(query, key, value, scale=self.scale)

        attended = jnp.swapaxes(jax.lax.map(attend_block, query), 0, 1)
        return self.o(join_heads(attended.reshape(batch, length, *attended.shape[3:])))


class WhisperMlp(nnx.Module):
    """Feed-forward with the erf GELU."""

    def __init__(self, width: int, mlp_width: int, *, rngs: nnx.Rngs):
        self.wi = Linear(width, mlp_width, rngs=rngs)
        self.wo = Linear(mlp_width, width, rngs=rngs)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        """Return linear(gelu(linear(x)))."""
        return self.wo(gelu(self.wi(x)))


class EncoderBlock(nnx.Module):
    """Self-attention, then feed-forward; norms before, residuals around."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(config.width, eps=config.eps)
        self.attention = WhisperAttention(config.width, config.encoder_heads, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width, eps=config.eps)
        self.mlp = WhisperMlp(config.width, config.encoder_mlp, rngs=rngs)

    def __call__(self, x: Float[Array, "B S D"]) -> Float[Array, "B S D"]:
        """Return the activations after this block."""
        x = x + self.attention.self_attend(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(nnx.Module):
    """Causal self-attention, attention to the encoder, feed-forward."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.self_norm = LayerNorm(config.width, eps=config.eps)
        self.self_attention = WhisperAttention(config.width, config.decoder_heads, rngs=rngs)
        self.cross_norm = LayerNorm(config.width, eps=config.eps)
        self.cross_attention = WhisperAttention(config.width, config.decoder_heads, rngs=rngs)
        self.mlp_norm = LayerNorm(config.width, eps=config.eps)
        self.mlp = WhisperMlp(config.width, config.decoder_mlp, rngs=rngs)

    def decode_step(
        self, x: Float[Array, "B A D"], cache: LayerCache, cache_index: Int[Array, ""], mask: Bool[Array, "B A M"]
    ) -> tuple[Float[Array, "B A D"], LayerCache]:
        """Decode tokens `cache_index` .. `cache_index` + A; also return the cache with their keys and values."""
        x, cache = self._attend_tokens(x, cache, cache_index, mask)
        x = x + self.cross_attention.attend_cached(self.cross_norm(x), cache.cross_attention)
        return x + self.mlp(self.mlp_norm(x)), cache

    def cross_attention_weights(
        self, x: Float[Array, "B A D"], cache: LayerCache, cache_index: Int[Array, ""], mask: Bool[Array, "B A M"]
    ) -> Float[Array, "B N A S"]:
        """Return the attention to the encoder in `decode_step`, whose other work is compiled once for both."""
        x, cache = self._attend_tokens(x, cache, cache_index, mask)
        return self.cross_attention.cached_weights(self.cross_norm(x), cache.cross_attention)

    def _attend_tokens(
        self, x: Float[Array, "B A D"], cache: LayerCache, cache_index: Int[Array, ""], mask: Bool[Array, "B A M"]
    ) -> tuple[Float[Array, "B A D"], LayerCache]:
        normed = self.self_norm(x)
        cache = cache.update_self(*self.self_attention.project_keys_values(normed), cache_index)
        return x + self.self_attention.attend_cached(normed, cache.self_attention, mask=mask), cache


class Encoder(nnx.Module):
    """Two convolutions over time, learned positions (published models have sinusoids), blocks."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        # A convolution of width 3 is a linear layer of three concatenated frames.
        self.conv1 = Linear(3 * config.mel_bins, config.width, rngs=rngs)
        self.conv2 = Linear(3 * config.width, config.width, rngs=rngs)
        self.positions = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.audio_positions, config.width), jnp.float32)
        )
        self.blocks = stack_blocks(lambda rngs: EncoderBlock(config, rngs=rngs), config.encoder_depth, rngs)
        self.final_norm = LayerNorm(config.width, eps=config.eps)


class Decoder(nnx.Module):
    """Token embedding, tied to the head, learned positions, blocks."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.tokens = nnx.Param(0.02 * jax.random.normal(rngs.params(), (config.vocab, config.width), jnp.float32))
        self.positions = nnx.Param(
            0.02 * jax.random.normal(rngs.params(), (config.text_positions, config.width), jnp.float32)
        )
        self.blocks = stack_blocks(lambda rngs: DecoderBlock(config, rngs=rngs), config.decoder_depth, rngs)
        self.final_norm = LayerNorm(config.width, eps=config.eps)


class Whisper(nnx.Module):
    """Encoder and decoder; they compute in the dtype of the mel bands."""

    def __init__(self, config: WhisperConfig, *, rngs: nnx.Rngs):
        self.encoder = Encoder(config, rngs=rngs)
        self.decoder = Decoder(config, rngs=rngs)
        self.config = config

    def encode(self, mel: Float[Array, "B F C"]) -> Float[Array, "B S D"]:
        """Encode windows of log-mel bands from `calce_jax.speech.mel`.

        On a CPU windows are encoded one by one: the activations of one fit the cache, a batch of 16 took twice as long.
        """

        def encode_one_by_one(mel: Float[Array, "B F C"]) -> Float[Array, "B S D"]:
            return jax.lax.map(lambda window: self._encode(window[None])[0], mel)

        return jax.lax.platform_dependent(mel, cpu=encode_one_by_one, default=self._encode)

    def _encode(self, mel: Float[Array, "B F C"]) -> Float[Array, "B S D"]:
        x = gelu(self.encoder.conv1(_unfold_frames(mel, stride=1)))
        x = gelu(self.encoder.conv2(_unfold_frames(x, stride=2)))
        x = x + self.encoder.positions[...].astype(x.dtype)[None]

        def body(block: EncoderBlock, x: Array, _: None, key: Key) -> tuple[Array, None]:
            return block(x), None

        x, _ = scan_blocks(self.encoder.blocks, body, x)
        return self.encoder.final_norm(x)

    def decoder_blocks(self) -> list[DecoderBlock]:
        """Return the decoder's blocks as a list, for `decode_step`."""
        return unstack_blocks(self.decoder.blocks)

    def init_cache(
        self, blocks: Sequence[DecoderBlock], memory: Float[Array, "B S D"], max_length: int
    ) -> tuple[LayerCache, ...]:
        """Return a cache for texts of at most `max_length` tokens, prompt included, for encoded windows."""
        cross_caches = [
            KVCache.from_projections(*block.cross_attention.project_keys_values(memory)) for block in blocks
        ]
        return tuple(LayerCache(cross, cross.init(max_length)) for cross in cross_caches)

    def decode_step(
        self,
        blocks: Sequence[DecoderBlock],
        ids: Int[Array, "B A"],
        cache: tuple[LayerCache, ...],
        cache_index: Int[Array, ""],
        text_start: Int[Array, " B"],
    ) -> tuple[Float[Array, "B A D"], tuple[LayerCache, ...]]:
        """Decode the tokens at cache positions `cache_index` .. `cache_index` + A.

        Args:
          blocks: from `decoder_blocks`.
          ids: the tokens.
          cache: from `init_cache` or the previous step.
          cache_index: cache position of the first token.
          text_start: cache position at which each row's text begins. Prompts are padded on the left, so that all rows
            write at the same position; positions before `text_start` are masked.

        Returns:
          The hidden states after each token, the input of `logits`; and the cache with these tokens.
        """
        x, mask = self._embed_tokens(ids, cache, cache_index, text_start)
        caches = []
        for block, layer in zip(blocks, cache, strict=True):
            x, layer = block.decode_step(x, layer, cache_index, mask)  # noqa: PLW2901
            caches.append(layer)
        return self.decoder.final_norm(x), tuple(caches)

    def decode_with_attention(
        self, ids: Int[Array, "B A"], memory: Float[Array, "B S D"], heads: Sequence[tuple[int, int]]
    ) -> tuple[Float[Array, "B A D"], Float[Array, "B K A S"]]:
        """Decode whole texts at once, and return some heads' attention to the encoder.

        Args:
          ids: the tokens, padded on the right with any token.
          memory: from `encode`.
          heads: K pairs (index of the decoder's block, index of the head in it).

        Returns:
          The hidden states after each token; and the float32 attention weights, which are in order of the blocks.
        """
        blocks = self.decoder_blocks()
        cache = self.init_cache(blocks, memory, ids.shape[1])
        start = jnp.zeros((), jnp.int32)
        x, mask = self._embed_tokens(ids, cache, start, jnp.zeros(ids.shape[:1], jnp.int32))
        weights = []
        for index, (block, layer) in enumerate(zip(blocks, cache, strict=True)):
            if selected := sorted(head for block_index, head in heads if block_index == index):
                weights.append(block.cross_attention_weights(x, layer, start, mask)[:, np.array(selected)])
            x, _ = block.decode_step(x, layer, start, mask)
        return self.decoder.final_norm(x), jnp.concatenate(weights, axis=1)

    def _embed_tokens(
        self,
        ids: Int[Array, "B A"],
        cache: tuple[LayerCache, ...],
        cache_index: Int[Array, ""],
        text_start: Int[Array, " B"],
    ) -> tuple[Float[Array, "B A D"], Bool[Array, "B A M"]]:
        """Return the embedded tokens, and which cache positions each of them attends to."""
        dtype, length = cache[0].self_attention.key.dtype, cache[0].self_attention.key.shape[3]
        cache_positions = cache_index + jnp.arange(ids.shape[1])
        position_ids = jnp.maximum(cache_positions[None] - text_start[:, None], 0)
        x = jnp.take(self.decoder.tokens[...], ids, axis=0).astype(dtype)
        x = x + jnp.take(self.decoder.positions[...], position_ids, axis=0).astype(dtype)
        key_positions = jnp.arange(length)
        mask = (key_positions[None, None] <= cache_positions[None, :, None]) & (
            key_positions[None, None] >= text_start[:, None, None]
        )
        return x, mask

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Return the float32 logits of the next token."""
        tokens = self.decoder.tokens[...].astype(x.dtype)
        precision = matmul_precision(x.dtype)
        return jnp.einsum("...d,vd->...v", x, tokens, precision=precision, preferred_element_type=jnp.float32)


def _unfold_frames(x: Float[Array, "B F C"], *, stride: int) -> Float[Array, "B G E"]:
    """Concatenate every `stride`-th frame with its neighbours, E = 3 C; zeros beyond the ends."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
    length = x.shape[1]
    return jnp.concatenate([padded[:, shift : shift + length : stride] for shift in range(3)], axis=-1)
