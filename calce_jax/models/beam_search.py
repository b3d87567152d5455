"""Beam search as one loop on the device.

Keys and values of the encoder are cached once a sample. A token costs one decoder step for all beams; the cache is not
reordered: `beam_indices` says which beam wrote each token of a beam.

Source: beam search of Hugging Face `transformers`, which the original uses, without early stopping. A finished answer
scores its summed log-probability divided by its length. A sample is done when it has K finished answers and no running
beam, at its present length, scores higher than the worst of them.

With a grammar only tokens that it allows are candidates. Probabilities are still those of the model over its whole
vocabulary, so answers score what they would score without. Where fewer than K continuations are allowed, the other
beams are dead: their log-probability is about NEG_INF, and they give no answers.

Dimensions: B batch, K beams, M longest answer, V vocabulary, C candidate tokens (V, or those of the grammar), L encoder
positions.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from calce_jax.config import Behaviour
from calce_jax.models.answer_grammar import AnswerConstraint, AnswerGrammar, AnswerState
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.kv_cache import LayerCache
from calce_jax.models.t5 import DECODER_START_ID, EOS_ID, T5

NEG_INF = -1e9


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BeamState:
    """Carry of the loop: running beams and finished answers."""

    position: Int[Array, ""]
    tokens: Int[Array, "B K M"]
    log_probability: Float[Array, "B K"]
    cache: tuple[LayerCache, ...]
    beam_indices: Int[Array, "B K M"]  # see `T5.decode_step`
    finished: BeamSearchOutput
    is_done: Bool[Array, " B"]
    answer: AnswerState | None = None  # of the running beams, with a grammar


def beam_search(
    t5: T5,
    memory: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    *,
    num_beams: int,
    max_length: int,
    min_length: int = 1,
    behaviour: Behaviour = "default",
    grammar: AnswerGrammar | None = None,
    duration: Float[Array, " B"] | None = None,
) -> BeamSearchOutput:
    """Return the most probable answers to encoded prompts; those of a sample do not depend on the rest of the batch.

    Args:
      t5: the model.
      memory, mask: the encoder's output, and True for its real positions.
      num_beams: K.
      max_length: M, tokens, the end token included.
      min_length: minimum tokens of an answer, the end token included. Before that the end token is excluded, and the
        other log-probabilities are not renormalised.
      behaviour: "reference" divides an unfinished answer's log-probability by its length + 1, as `transformers` did up
        to 4.35. It affects when the search stops and the rank of a truncated answer.
      grammar: of the answers that are allowed; None allows all.
      duration: of the videos, in seconds; needed with a grammar.
    """
    constraint = None if grammar is None or duration is None else AnswerConstraint(grammar, duration)
    t5 = t5.gathered()
    batch, blocks = memory.shape[0], t5.decoder_blocks()
    no_score = jnp.full((batch, num_beams), NEG_INF, jnp.float32)
    no_tokens = jnp.zeros((batch, num_beams, max_length), jnp.int32)
    finished = BeamSearchOutput(
        tokens=no_tokens,
        score=no_score,
        log_probability=no_score,
        is_finished=jnp.zeros(no_score.shape, bool),
        steps=jnp.zeros((), jnp.int32),
    )
    state = BeamState(
        position=jnp.zeros((), jnp.int32),
        tokens=no_tokens,
        # All beams start with the same token, so only the first may be continued; otherwise they would stay equal.
        log_probability=no_score.at[:, 0].set(0.0),
        cache=t5.init_cache(blocks, memory, num_beams, max_length),
        beam_indices=no_tokens,
        finished=finished,
        is_done=jnp.zeros((batch,), bool),
        answer=constraint and constraint.init(num_beams),
    )

    # Added to the length that divides a running answer. With one beam `transformers` searches greedily: it divides
    # nothing and stops at the first end token.
    extra_length = 1 if behaviour == "reference" and num_beams > 1 else 0

    def should_continue(state: BeamState) -> Bool[Array, ""]:
        return (state.position < max_length) & ~state.is_done.all()

    def step(state: BeamState) -> BeamState:
        last_tokens = jnp.take(state.tokens, jnp.maximum(state.position - 1, 0), axis=2)
        ids = jnp.where(state.position == 0, DECODER_START_ID, last_tokens)
        beam_indices = state.beam_indices.at[:, :, state.position].set(jnp.arange(num_beams))
        logits, cache = t5.decode_step(blocks, ids, state.cache, state.position, beam_indices=beam_indices, mask=mask)
        state = replace(state, cache=cache, beam_indices=beam_indices)
        return _beam_step(state, logits, min_length, extra_length, constraint)

    state = jax.lax.while_loop(should_continue, step, state)
    running_length = jnp.maximum(state.position + extra_length, 1).astype(jnp.float32)
    no_answer = state.is_done[:, None]
    if constraint is not None:
        no_answer |= _is_dead(state.log_probability)
    unfinished = BeamSearchOutput(
        tokens=state.tokens,
        score=jnp.where(no_answer, NEG_INF, state.log_probability / running_length),
        log_probability=state.log_probability,
        is_finished=jnp.zeros(no_score.shape, bool),
        steps=state.position,
    )
    return replace(_best_of_both(state.finished, unfinished, num_beams), steps=state.position)


def _beam_step(
    state: BeamState,
    logits: Float[Array, "B K V"],
    min_length: int,
    extra_length: int,
    constraint: AnswerConstraint | None = None,
) -> BeamState:
    batch, num_beams, _ = logits.shape
    token_log_probability = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    if constraint is not None:
        token_log_probability = token_log_probability[:, :, constraint.tokens]
    log_probability = state.log_probability[:, :, None] + token_log_probability
    candidates = jnp.arange(logits.shape[2]) if constraint is None else constraint.tokens
    if constraint is not None and state.answer is not None:
        log_probability = jnp.where(constraint.allowed(state.answer), log_probability, 2 * NEG_INF)
    if min_length > 1:
        too_early = (candidates == EOS_ID) & (state.position + 1 < min_length)
        log_probability = jnp.where(too_early[None, None], 2 * NEG_INF, log_probability)
    # 2 K candidates: even if K of them end here, K remain to be continued.
    top_log_probability, choice = jax.lax.top_k(log_probability, min(2 * num_beams, len(candidates)))
    value, indices = jax.lax.top_k(top_log_probability.reshape(batch, -1), 2 * num_beams)
    beam, choice = (
        indices // top_log_probability.shape[2],
        jnp.take_along_axis(choice.reshape(batch, -1), indices, axis=1),
    )
    token = choice if constraint is None else candidates[choice]
    tokens = jnp.take_along_axis(state.tokens, beam[:, :, None], axis=1).at[:, :, state.position].set(token)
    is_eos = token == EOS_ID
    length = (state.position + 1).astype(jnp.float32)

    may_end = is_eos & (jnp.arange(2 * num_beams) < num_beams)[None] & ~state.is_done[:, None]
    if constraint is not None:
        may_end &= ~_is_dead(value)
    new_finished = BeamSearchOutput(
        tokens=tokens,
        score=jnp.where(may_end, value / length, NEG_INF),
        log_probability=value,
        is_finished=may_end,
        steps=state.finished.steps,
    )
    finished = _best_of_both(state.finished, new_finished, num_beams)
    is_done = state.is_done | (finished.score[:, -1] >= value[:, 0] / (length + extra_length))

    value, indices = jax.lax.top_k(jnp.where(is_eos, 2 * NEG_INF, value), num_beams)
    beam = jnp.take_along_axis(beam, indices, axis=1)
    answer = None
    if constraint is not None and state.answer is not None:
        is_done |= _is_dead(value).all(axis=1)
        running = jax.tree.map(lambda array: jnp.take_along_axis(array, beam, axis=1), state.answer)
        answer = constraint.advance(running, jnp.take_along_axis(choice, indices, axis=1))
    return BeamState(
        position=state.position + 1,
        tokens=jnp.take_along_axis(tokens, indices[:, :, None], axis=1),
        log_probability=value,
        cache=state.cache,
        beam_indices=jnp.take_along_axis(state.beam_indices, beam[:, :, None], axis=1),
        finished=finished,
        is_done=is_done,
        answer=answer,
    )


def _is_dead(log_probability: Float[Array, "B N"]) -> Bool[Array, "B N"]:
    """Return which beams have a token that was not allowed, or never began."""
    return log_probability < NEG_INF / 2


def _best_of_both(first: BeamSearchOutput, second: BeamSearchOutput, num_beams: int) -> BeamSearchOutput:
    """Return the K answers of highest score; of equal scores, those of `first`."""
    score, indices = jax.lax.top_k(jnp.concatenate([first.score, second.score], axis=1), num_beams)

    def pick(a: Array, b: Array) -> Array:
        both = jnp.concatenate([a, b], axis=1)
        return jnp.take_along_axis(both, indices.reshape(*indices.shape, *(1,) * (both.ndim - 2)), axis=1)

    return BeamSearchOutput(
        tokens=pick(first.tokens, second.tokens),
        score=score,
        log_probability=pick(first.log_probability, second.log_probability),
        is_finished=pick(first.is_finished, second.is_finished),
        steps=first.steps,
    )
