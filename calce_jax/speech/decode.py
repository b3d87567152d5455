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

from calce_jax.batch import Data
from calce_jax.models.kv_cache import LayerCache
from calce_jax.models.whisper import Whisper
from calce_jax.speech.special_tokens import Vocabulary


@struct.dataclass
class Windows:
    """What is asked of the device."""

    mel: Float[Data, "B F C"]
    prompt: Int[Data, "B P"]  # padded on the left with anything
    prompt_length: Int[Data, " B"]
    temperature: Float[Data, " B"]  # 0 for the most probable token
    seed: UInt32[Data, " B"]  # for temperatures above 0


@struct.dataclass
class Texts:
    """What it answers."""

    tokens: Int[Data, "B M"]  # without the prompt; the end token from the end on
    length: Int[Data, " B"]  # tokens before the end
    log_probability: Float[Data, " B"]  # of a token, the end included, on average
    no_speech: Float[Data, " B"]  # probability that nobody speaks


@struct.dataclass
class _State:
    at: Int[Array, ""]  # tokens written
    logits: Float[Array, "B V"]  # of the next
    cache: tuple[LayerCache, ...]
    tokens: Int[Array, "B M"]
    length: Int[Array, " B"]
    total: Float[Array, " B"]  # summed log-probability
    done: Bool[Array, " B"]


def transcribe_windows(
    whisper: Whisper,
    windows: Windows,
    vocabulary: Vocabulary,
    *,
    longest: int,
    dtype: str = "float32",
    times: bool = True,
) -> Texts:
    """Encode windows and write what is said in them.

    Args:
      whisper: the model.
      windows: a batch.
      vocabulary: of the model.
      longest: M; prompt and text together fit the model's positions.
      dtype: that everything but norms, softmax and logits is computed in.
      times: whether texts have times; the prompt must say the same.
    """
    batch, width = windows.prompt.shape
    blocks = whisper.decoder_blocks()
    cache = whisper.start(blocks, whisper.encode(windows.mel.astype(dtype)), width + longest)
    first = width - windows.prompt_length
    x, cache = whisper.advance(blocks, windows.prompt, cache, jnp.zeros((), jnp.int32), first)
    # OpenAI's measure: after the token that starts a text, before language and task are told.
    started = jnp.argmax(windows.prompt == vocabulary.start, axis=1)
    after_start = jnp.take_along_axis(x, started[:, None, None], axis=1)[:, 0]
    silence = jax.nn.softmax(whisper.logits(after_start), axis=-1)[:, vocabulary.no_speech]
    keys = jax.vmap(jax.random.key)(windows.seed)

    def going_on(state: _State) -> Bool[Array, ""]:
        return (state.at < longest) & ~state.done.all()

    def write(state: _State) -> _State:
        logits = allowed(state.logits, state.tokens, state.at, vocabulary, times=times)
        token = _choose(logits, windows.temperature, jax.vmap(jax.random.fold_in, (0, None))(keys, state.at))
        token = jnp.where(state.done, vocabulary.end, token)
        each = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), token[:, None], axis=1)[:, 0]
        x, cache = whisper.advance(blocks, token[:, None], state.cache, width + state.at, first)
        ends = token == vocabulary.end
        return _State(
            at=state.at + 1,
            logits=whisper.logits(x[:, 0]),
            cache=cache,
            tokens=jax.lax.dynamic_update_slice_in_dim(state.tokens, token[:, None], state.at, axis=1),
            length=state.length + (~ends).astype(jnp.int32),
            total=state.total + jnp.where(state.done, 0.0, each),
            done=state.done | ends,
        )

    state = _State(
        at=jnp.zeros((), jnp.int32),
        logits=whisper.logits(x[:, -1]),
        cache=cache,
        tokens=jnp.full((batch, longest), vocabulary.end, jnp.int32),
        length=jnp.zeros((batch,), jnp.int32),
        total=jnp.zeros((batch,), jnp.float32),
        done=jnp.zeros((batch,), bool),
    )
    state = jax.lax.while_loop(going_on, write, state)
    return Texts(
        tokens=state.tokens,
        length=state.length,
        log_probability=state.total / (state.length + 1).astype(jnp.float32),
        no_speech=silence,
    )


def detect_language(
    whisper: Whisper, mel: Float[Array, "B F C"], vocabulary: Vocabulary, *, dtype: str = "float32"
) -> Int[Array, " B"]:
    """Return the token of each window's most probable language."""
    blocks = whisper.decoder_blocks()
    cache = whisper.start(blocks, whisper.encode(mel.astype(dtype)), 1)
    ids = jnp.full((mel.shape[0], 1), vocabulary.start, jnp.int32)
    x, _ = whisper.advance(blocks, ids, cache, jnp.zeros((), jnp.int32), jnp.zeros((mel.shape[0],), jnp.int32))
    languages = jnp.asarray(sorted(vocabulary.languages.values()), jnp.int32)
    return languages[whisper.logits(x[:, 0])[:, languages].argmax(axis=-1)]


def allowed(
    logits: Float[Array, "B V"], tokens: Int[Array, "B M"], at: Int[Array, ""], vocabulary: Vocabulary, *, times: bool
) -> Float[Array, "B V"]:
    """Return the logits with minus infinity where the rules forbid a token.

    Args:
      logits: of the next token.
      tokens, at: those written so far, and how many.
      vocabulary: of the model.
      times: whether the rules for times apply: texts begin with a time, at most a second or so after the window; times
        come in pairs, except before the end; none is before the last one; and a time is written where all times
        together are more probable than any one word.
    """
    number = np.arange(logits.shape[1])
    never = np.isin(number, vocabulary.suppress)
    never_first = np.isin(number, vocabulary.suppress_first)
    if times:
        is_time = number >= vocabulary.time
        never |= number == vocabulary.no_times
        never_first |= ~is_time | (number > vocabulary.time + vocabulary.first_time)
    forbidden = never[None] | (never_first[None] & (at == 0))
    if not times:
        return jnp.where(forbidden, -jnp.inf, logits)

    last, before = (jnp.take(tokens, jnp.maximum(at - back, 0), axis=1) >= vocabulary.time for back in (1, 2))
    last, before = last & (at >= 1), before | (at < 2)
    pair, single = last & before, last & ~before
    forbidden = forbidden | (pair[:, None] & is_time[None]) | (single[:, None] & (number < vocabulary.end)[None])
    latest = jnp.where((jnp.arange(tokens.shape[1]) < at)[None], tokens, 0).max(axis=1)
    # The end of one text may be the begin of the next; a text of no length is not.
    least = jnp.where(single, latest, latest + 1)
    forbidden = forbidden | (is_time[None] & (number[None] < least[:, None]))
    logits = jnp.where(forbidden, -jnp.inf, logits)

    total = jax.nn.logsumexp(logits[:, vocabulary.time :], axis=1)
    word = logits[:, : vocabulary.time].max(axis=1)
    return jnp.where((total > word)[:, None] & ~is_time[None], -jnp.inf, logits)


def _choose(logits: Float[Array, "B V"], temperature: Float[Array, " B"], keys: Array) -> Int[Array, " B"]:
    best = logits.argmax(axis=1).astype(jnp.int32)

    def sample() -> Int[Array, " B"]:
        warm = logits / jnp.where(temperature > 0, temperature, 1.0)[:, None]
        drawn = jax.vmap(jax.random.categorical)(keys, warm).astype(jnp.int32)
        return jnp.where(temperature > 0, drawn, best)

    return jax.lax.cond((temperature > 0).any(), sample, lambda: best)
