"""Beam search: the most probable answers, found on the device in one loop.

The encoder's keys and values are kept once a sample; a token costs one decoder step for all beams together, with a
cache in which nothing is moved: a beam remembers where its tokens were written.

The rules are those of beam search in Hugging Face `transformers` (the original's decoder, early stopping off): an
answer that ends scores its summed log-probability divided by its length, and a sample is done when it has as many
ended answers as beams and none of the running ones, at its present length, would beat the worst of them.

Dimensions: B batch, K beams, M longest answer, V vocabulary, L encoder positions.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from calce_jax.batch import Data
from calce_jax.config import Behaviour
from calce_jax.models.kv_cache import LayerCache
from calce_jax.models.t5 import T5

START, END = 0, 1
NEVER = -1e9


@struct.dataclass
class Answers:
    """The K best answers about each sample, best first."""

    tokens: Int[Data, "B K M"]  # without the start token; 0 after the end
    score: Float[Data, "B K"]  # mean log-probability a token, the ranking; very negative where there is no answer
    log_probability: Float[Data, "B K"]  # of the whole answer
    ended: Bool[Data, "B K"]  # False where the answer was cut at M tokens
    steps: Int[Data, ""]  # decoder steps taken


@struct.dataclass
class _Search:
    at: Int[Array, ""]
    tokens: Int[Array, "B K M"]
    log_probability: Float[Array, "B K"]
    cache: tuple[LayerCache, ...]
    rows: Int[Array, "B K M"]  # of the cache, see `T5.step`
    found: Answers
    done: Bool[Array, " B"]


def beam_search(
    t5: T5,
    memory: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    *,
    beams: int,
    length: int,
    shortest: int = 1,
    behaviour: Behaviour = "default",
) -> Answers:
    """Search the answers to encoded prompts.

    Args:
      t5: the model.
      memory, mask: its encoder's result, and which positions of it count.
      beams: K.
      length: M, the longest answer in tokens, the end token included.
      shortest: tokens an answer has at least, the end token included; before that the end is not considered, without
        the other tokens becoming any more probable.
      behaviour: "reference" divides an answer that has not ended by one more than its length, as `transformers` did up
        to 4.35: it decides how long the search goes on, and where a cut answer stands among ended ones.

    Returns:
      The answers of every sample, the same whatever else is in the batch.
    """
    batch, blocks = memory.shape[0], t5.decoder_blocks()
    none = jnp.full((batch, beams), NEVER, jnp.float32)
    blank = jnp.zeros((batch, beams, length), jnp.int32)
    found = Answers(
        tokens=blank,
        score=none,
        log_probability=none,
        ended=jnp.zeros(none.shape, bool),
        steps=jnp.zeros((), jnp.int32),
    )
    search = _Search(
        at=jnp.zeros((), jnp.int32),
        tokens=blank,
        # All beams start alike: only the first may be continued, or they would stay alike.
        log_probability=none.at[:, 0].set(0.0),
        cache=t5.start(blocks, memory, beams, length),
        rows=blank,
        found=found,
        done=jnp.zeros((batch,), bool),
    )

    # What running answers are divided by beyond their length. One beam is a greedy search in `transformers`, which
    # divides nothing and stops at the first end.
    extra = 1 if behaviour == "reference" and beams > 1 else 0

    def going_on(search: _Search) -> Bool[Array, ""]:
        return (search.at < length) & ~search.done.all()

    def advance(search: _Search) -> _Search:
        last = jnp.take(search.tokens, jnp.maximum(search.at - 1, 0), axis=2)
        ids = jnp.where(search.at == 0, START, last)
        rows = search.rows.at[:, :, search.at].set(jnp.arange(beams))
        logits, cache = t5.step(blocks, ids, search.cache, search.at, rows=rows, mask=mask)
        return _advance(replace(search, cache=cache, rows=rows), logits, shortest, extra)

    search = jax.lax.while_loop(going_on, advance, search)
    cut = jnp.maximum(search.at + extra, 1).astype(jnp.float32)
    running = Answers(
        tokens=search.tokens,
        score=jnp.where(search.done[:, None], NEVER, search.log_probability / cut),
        log_probability=search.log_probability,
        ended=jnp.zeros(none.shape, bool),
        steps=search.at,
    )
    return replace(_best(search.found, running, beams), steps=search.at)


def _advance(search: _Search, logits: Float[Array, "B K V"], shortest: int, extra: int) -> _Search:
    batch, beams, vocab = logits.shape
    log_probability = search.log_probability[:, :, None] + jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if shortest > 1:
        too_early = (jnp.arange(vocab) == END) & (search.at + 1 < shortest)
        log_probability = jnp.where(too_early[None, None], 2 * NEVER, log_probability)
    # Twice as many candidates as beams: even if all beams can end here, as many ways to go on remain.
    each, token = jax.lax.top_k(log_probability, min(2 * beams, vocab))
    value, rank = jax.lax.top_k(each.reshape(batch, -1), 2 * beams)
    beam, token = rank // each.shape[2], jnp.take_along_axis(token.reshape(batch, -1), rank, axis=1)
    tokens = jnp.take_along_axis(search.tokens, beam[:, :, None], axis=1).at[:, :, search.at].set(token)
    ends = token == END
    length = (search.at + 1).astype(jnp.float32)

    may_end = ends & (jnp.arange(2 * beams) < beams)[None] & ~search.done[:, None]
    ended = Answers(
        tokens=tokens,
        score=jnp.where(may_end, value / length, NEVER),
        log_probability=value,
        ended=may_end,
        steps=search.found.steps,
    )
    found = _best(search.found, ended, beams)
    done = search.done | (found.score[:, -1] >= value[:, 0] / (length + extra))

    value, rank = jax.lax.top_k(jnp.where(ends, 2 * NEVER, value), beams)
    beam = jnp.take_along_axis(beam, rank, axis=1)
    return _Search(
        at=search.at + 1,
        tokens=jnp.take_along_axis(tokens, rank[:, :, None], axis=1),
        log_probability=value,
        cache=search.cache,
        rows=jnp.take_along_axis(search.rows, beam[:, :, None], axis=1),
        found=found,
        done=done,
    )


def _best(first: Answers, second: Answers, beams: int) -> Answers:
    """Keep the best of both; of equal ones, those of `first`."""
    score, rank = jax.lax.top_k(jnp.concatenate([first.score, second.score], axis=1), beams)

    def pick(a: Array, b: Array) -> Array:
        both = jnp.concatenate([a, b], axis=1)
        return jnp.take_along_axis(both, rank.reshape(*rank.shape, *(1,) * (both.ndim - 2)), axis=1)

    return Answers(
        tokens=pick(first.tokens, second.tokens),
        score=score,
        log_probability=pick(first.log_probability, second.log_probability),
        ended=pick(first.ended, second.ended),
        steps=first.steps,
    )
