"""Whisper's decoding of a batch of mel windows to tokens, in one compiled program.

Source: Radford et al. 2022, section 3.8, and the timestamp rules of OpenAI's code; the numbers equal those of
transformers. Rows of a batch are independent: each has its own prompt, temperature and seed.

Dimensions: B windows, F mel frames, C mel bands, P prompt length, M maximal text length, V vocabulary.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from calce_jax.batch import AnyArray
from calce_jax.models.kv_cache import LayerCache
from calce_jax.models.whisper import Whisper
from calce_jax.speech.special_tokens import SpecialTokens


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeInputs:
    """A batch of windows to decode."""

    mel: Float[AnyArray, "B F C"]
    prompt: Int[AnyArray, "B P"]  # left-padded with any token
    prompt_length: Int[AnyArray, " B"]  # tokens without padding
    temperature: Float[AnyArray, " B"]  # 0 takes the most probable token
    seed: UInt32[AnyArray, " B"]  # of the sampling at temperatures above 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DecodeOutputs:
    """The decoded texts of a batch."""

    tokens: Int[AnyArray, "B M"]  # without the prompt; padded with `eot`
    length: Int[AnyArray, " B"]  # tokens before `eot`
    avg_logprob: Float[AnyArray, " B"]  # mean log-probability of a token, `eot` included
    no_speech_prob: Float[AnyArray, " B"]  # probability of the `no_speech` token


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _DecodeState:
    step: Int[Array, ""]  # tokens decoded
    logits: Float[Array, "B V"]  # of the next token
    cache: tuple[LayerCache, ...]
    tokens: Int[Array, "B M"]
    length: Int[Array, " B"]
    sum_logprob: Float[Array, " B"]
    done: Bool[Array, " B"]


def transcribe_batch(
    whisper: Whisper,
    inputs: DecodeInputs,
    special_tokens: SpecialTokens,
    *,
    max_length: int,
    dtype: str = "float32",
    timestamps: bool = True,
) -> DecodeOutputs:
    """Encode a batch of windows and decode their texts.

    Args:
      whisper: the model.
      inputs: the batch.
      special_tokens: of the model.
      max_length: M; P + M must not exceed the model's text positions.
      dtype: of all computations but norms, softmax and logits.
      timestamps: whether texts have timestamps; the prompt must agree.
    """
    batch_size, prompt_width = inputs.prompt.shape
    blocks = whisper.decoder_blocks()
    cache = whisper.init_cache(blocks, whisper.encode(inputs.mel.astype(dtype)), prompt_width + max_length)
    prompt_start = prompt_width - inputs.prompt_length
    x, cache = whisper.decode_step(blocks, inputs.prompt, cache, jnp.zeros((), jnp.int32), prompt_start)
    # As OpenAI measures it: at the start-of-transcript token, before language and task.
    sot_position = jnp.argmax(inputs.prompt == special_tokens.sot, axis=1)
    sot_hidden = jnp.take_along_axis(x, sot_position[:, None, None], axis=1)[:, 0]
    no_speech_prob = jax.nn.softmax(whisper.logits(sot_hidden), axis=-1)[:, special_tokens.no_speech]
    keys = jax.vmap(jax.random.key)(inputs.seed)

    def is_unfinished(state: _DecodeState) -> Bool[Array, ""]:
        return (state.step < max_length) & ~state.done.all()

    def decode_step(state: _DecodeState) -> _DecodeState:
        logits = filter_logits(state.logits, state.tokens, state.step, special_tokens, timestamps=timestamps)
        token = _sample_tokens(logits, inputs.temperature, jax.vmap(jax.random.fold_in, (0, None))(keys, state.step))
        token = jnp.where(state.done, special_tokens.eot, token)
        token_logprob = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=1)[:, 0]
        x, cache = whisper.decode_step(blocks, token[:, None], state.cache, prompt_width + state.step, prompt_start)
        is_end = token == special_tokens.eot
        return _DecodeState(
            step=state.step + 1,
            logits=whisper.logits(x[:, 0]),
            cache=cache,
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.step, axis=1),
            length=state.length + (~is_end).astype(jnp.int32),
            sum_logprob=state.sum_logprob + jnp.where(state.done, 0.0, token_logprob),
            done=state.done | is_end,
        )

    state = _DecodeState(
        step=jnp.zeros((), jnp.int32),
        logits=whisper.logits(x[:, -1]),
        cache=cache,
        tokens=jnp.full((batch_size, max_length), special_tokens.eot, jnp.int32),
        length=jnp.zeros((batch_size,), jnp.int32),
        sum_logprob=jnp.zeros((batch_size,), jnp.float32),
        done=jnp.zeros((batch_size,), bool),
    )
    state = jax.lax.while_loop(is_unfinished, decode_step, state)
    return DecodeOutputs(
        tokens=state.tokens,
        length=state.length,
        avg_logprob=state.sum_logprob / (state.length + 1).astype(jnp.float32),
        no_speech_prob=no_speech_prob,
    )


def detect_language(
    whisper: Whisper, mel: Float[Array, "B F C"], special_tokens: SpecialTokens, *, dtype: str = "float32"
) -> Int[Array, " B"]:
    """Return the language token with the highest logit for each window."""
    blocks = whisper.decoder_blocks()
    cache = whisper.init_cache(blocks, whisper.encode(mel.astype(dtype)), 1)
    ids = jnp.full((mel.shape[0], 1), special_tokens.sot, jnp.int32)
    x, _ = whisper.decode_step(blocks, ids, cache, jnp.zeros((), jnp.int32), jnp.zeros((mel.shape[0],), jnp.int32))
    languages = jnp.asarray(sorted(special_tokens.languages.values()), jnp.int32)
    return languages[whisper.logits(x[:, 0])[:, languages].argmax(axis=-1)]


def filter_logits(
    logits: Float[Array, "B V"],
    tokens: Int[Array, "B M"],
    step: Int[Array, ""],
    special_tokens: SpecialTokens,
    *,
    timestamps: bool,
) -> Float[Array, "B V"]:
    """Return the logits with -inf for suppressed tokens.

    With `timestamps`, OpenAI's timestamp rules apply too: a text begins with a timestamp, of at most
    `max_initial_timestamp_index`; timestamps come in pairs, except before `eot`; they do not decrease; and a timestamp
    is forced where all timestamps together are more probable than any single text token.

    Args:
      logits: of the next token.
      tokens: decoded so far; only the first `step` count.
      step: number of decoded tokens.
      special_tokens: of the model.
      timestamps: whether the timestamp rules apply.
    """
    token_ids = np.arange(logits.shape[1])
    always_suppressed = np.isin(token_ids, special_tokens.suppress_tokens)
    suppressed_at_begin = np.isin(token_ids, special_tokens.begin_suppress_tokens)
    is_timestamp = token_ids >= special_tokens.timestamp_begin
    if timestamps:
        always_suppressed |= token_ids == special_tokens.no_timestamps
        suppressed_at_begin |= ~is_timestamp | (
            token_ids > special_tokens.timestamp_begin + special_tokens.max_initial_timestamp_index
        )
    forbidden = always_suppressed[None] | (suppressed_at_begin[None] & (step == 0))
    if not timestamps:
        return jnp.where(forbidden, -jnp.inf, logits)

    last_is_timestamp, penultimate_is_timestamp = (
        jnp.take(tokens, jnp.maximum(step - back, 0), axis=1) >= special_tokens.timestamp_begin for back in (1, 2)
    )
    last_is_timestamp, penultimate_is_timestamp = last_is_timestamp & (step >= 1), penultimate_is_timestamp | (step < 2)
    pair, single = last_is_timestamp & penultimate_is_timestamp, last_is_timestamp & ~penultimate_is_timestamp
    forbidden = (
        forbidden | (pair[:, None] & is_timestamp[None]) | (single[:, None] & (token_ids < special_tokens.eot)[None])
    )
    last_timestamp = jnp.where((jnp.arange(tokens.shape[1]) < step)[None], tokens, 0).max(axis=1)
    # A segment may start where the last one ended, but not end where it started.
    min_timestamp = jnp.where(single, last_timestamp, last_timestamp + 1)
    forbidden = forbidden | (is_timestamp[None] & (token_ids[None] < min_timestamp[:, None]))
    logits = jnp.where(forbidden, -jnp.inf, logits)

    timestamp_logsumexp = jax.nn.logsumexp(logits[:, special_tokens.timestamp_begin :], axis=1)
    max_text_logit = logits[:, : special_tokens.timestamp_begin].max(axis=1)
    return jnp.where((timestamp_logsumexp > max_text_logit)[:, None] & ~is_timestamp[None], -jnp.inf, logits)


def _sample_tokens(logits: Float[Array, "B V"], temperature: Float[Array, " B"], keys: Array) -> Int[Array, " B"]:
    greedy = logits.argmax(axis=1).astype(jnp.int32)

    def sample() -> Int[Array, " B"]:
        scaled_logits = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        sampled = jax.vmap(jax.random.categorical)(keys, scaled_logits).astype(jnp.int32)
        return jnp.where(temperature > 0, sampled, greedy)

    return jax.lax.cond((temperature > 0).any(), sample, lambda: greedy)
