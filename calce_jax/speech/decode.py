"""From mel bands to tokens, a batch of windows in one compiled program.

Source: Radford et al. 2022, section 3.8, and OpenAI's rules for times; numbers equal those of `transformers`. Rows of a
batch know nothing of each other: each has its own prompt, temperature and seed.

Dimensions: B windows, F mel frames, C mel bands, P prompt length, M longest text, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt32

from calce_jax.batch import AnyArray
from calce_jax.models.kv_cache import LayerCache
from calce_jax.models.whisper import Whisper
from calce_jax.speech.special_tokens import SpecialTokens


@struct.dataclass
class DecodeInputs:
    """What is asked of the device."""

    mel: Float[AnyArray, "B F C"]
    prompt: Int[AnyArray, "B P"]  # padded on the left with anything
    prompt_length: Int[AnyArray, " B"]
    temperature: Float[AnyArray, " B"]  # 0 for the most probable token
    seed: UInt32[AnyArray, " B"]  # for temperatures above 0


@struct.dataclass
class DecodeOutputs:
    """What it answers."""

    tokens: Int[AnyArray, "B M"]  # without the prompt; the end token from the end on
    length: Int[AnyArray, " B"]  # tokens before the end
    avg_logprob: Float[AnyArray, " B"]  # of a token, the end included, on average
    no_speech_prob: Float[AnyArray, " B"]  # probability that nobody speaks


@struct.dataclass
class _DecodeState:
    step: Int[Array, ""]  # tokens written
    logits: Float[Array, "B V"]  # of the next
    cache: tuple[LayerCache, ...]
    tokens: Int[Array, "B M"]
    length: Int[Array, " B"]
    sum_logprob: Float[Array, " B"]  # summed log-probability
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
    """Encode windows and write what is said in them.

    Args:
      whisper: the model.
      inputs: a batch.
      special_tokens: of the model.
      max_length: M; prompt and text together fit the model's positions.
      dtype: that everything but norms, softmax and logits is computed in.
      timestamps: whether texts have times; the prompt must say the same.
    """
    batch_size, prompt_width = inputs.prompt.shape
    blocks = whisper.decoder_blocks()
    cache = whisper.init_cache(blocks, whisper.encode(inputs.mel.astype(dtype)), prompt_width + max_length)
    prompt_start = prompt_width - inputs.prompt_length
    x, cache = whisper.decode_step(blocks, inputs.prompt, cache, jnp.zeros((), jnp.int32), prompt_start)
    # OpenAI's measure: after the token that starts a text, before language and task are told.
    sot_position = jnp.argmax(inputs.prompt == special_tokens.sot, axis=1)
    sot_hidden = jnp.take_along_axis(x, sot_position[:, None, None], axis=1)[:, 0]
    no_speech_prob = jax.nn.softmax(whisper.logits(sot_hidden), axis=-1)[:, special_tokens.no_speech]
    keys = jax.vmap(jax.random.key)(inputs.seed)

    def going_on(state: _DecodeState) -> Bool[Array, ""]:
        return (state.step < max_length) & ~state.done.all()

    def write(state: _DecodeState) -> _DecodeState:
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
    state = jax.lax.while_loop(going_on, write, state)
    return DecodeOutputs(
        tokens=state.tokens,
        length=state.length,
        avg_logprob=state.sum_logprob / (state.length + 1).astype(jnp.float32),
        no_speech_prob=no_speech_prob,
    )


def detect_language(
    whisper: Whisper, mel: Float[Array, "B F C"], special_tokens: SpecialTokens, *, dtype: str = "float32"
) -> Int[Array, " B"]:
    """Return the token of each window's most probable language."""
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
    """Return the logits with minus infinity where the rules forbid a token.

    Args:
      logits: of the next token.
      tokens, step: those written so far, and how many.
      special_tokens: of the model.
      timestamps: whether the rules for times apply: texts begin with a time, at most a second or so after the window; times
        come in pairs, except before the end; none is before the last one; and a time is written where all times
        together are more probable than any one word.
    """
    token_ids = np.arange(logits.shape[1])
    always_suppressed = np.isin(token_ids, special_tokens.suppress_tokens)
    suppressed_at_begin = np.isin(token_ids, special_tokens.begin_suppress_tokens)
    if timestamps:
        is_timestamp = token_ids >= special_tokens.timestamp_begin
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
    # The end of one text may be the begin of the next; a text of no length is not.
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
