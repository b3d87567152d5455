"""Answers drawn at random from the model, as one loop on the device.

The encoder's keys and values are stored once a sample, and the answers to it are query positions of one attention, as
the beams of `calce_jax.models.beam_search` are; here an answer always goes on from itself.

Dimensions: B batch, K answers, M longest answer, V vocabulary, L encoder positions, D width.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from calce_jax.models.kv_cache import LayerCache
from calce_jax.models.t5 import DECODER_START_ID, EOS_ID, T5


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SamplingState:
    """Carry of the loop."""

    position: Int[Array, ""]
    tokens: Int[Array, "B K M"]
    cache: tuple[LayerCache, ...]
    is_done: Bool[Array, "B K"]


def sample_answers(
    t5: T5,
    memory: Float[Array, "B L D"],
    mask: Bool[Array, "B L"],
    key: PRNGKeyArray,
    *,
    num_answers: int,
    max_length: int,
    temperature: float = 1.0,
) -> Int[Array, "B K M"]:
    """Return answers to encoded prompts, drawn independently of each other: tokens with the end token, then 0.

    Args:
      t5: the model.
      memory, mask: the encoder's output, and True for its real positions.
      key: of the draws.
      num_answers: K.
      max_length: M, tokens, the end token included. An answer that reaches it has no end token.
      temperature: divides the logits; above 0.
    """
    t5 = t5.gathered()
    batch, blocks = memory.shape[0], t5.decoder_blocks()
    own_beams = jnp.broadcast_to(
        jnp.arange(num_answers, dtype=jnp.int32)[None, :, None], (batch, num_answers, max_length)
    )

    def should_continue(state: SamplingState) -> Bool[Array, ""]:
        return (state.position < max_length) & ~state.is_done.all()

    def step(state: SamplingState) -> SamplingState:
        last_tokens = jnp.take(state.tokens, jnp.maximum(state.position - 1, 0), axis=2)
        ids = jnp.where(state.position == 0, DECODER_START_ID, last_tokens)
        logits, cache = t5.decode_step(blocks, ids, state.cache, state.position, beam_indices=own_beams, mask=mask)
        draw = jax.random.categorical(
            jax.random.fold_in(key, state.position), logits.astype(jnp.float32) / temperature, axis=-1
        )
        tokens = jnp.where(state.is_done, 0, draw.astype(jnp.int32))
        return SamplingState(
            position=state.position + 1,
            tokens=state.tokens.at[:, :, state.position].set(tokens),
            cache=cache,
            is_done=state.is_done | (tokens == EOS_ID),
        )

    state = SamplingState(
        position=jnp.zeros((), jnp.int32),
        tokens=jnp.zeros((batch, num_answers, max_length), jnp.int32),
        cache=t5.init_cache(blocks, memory, num_answers, max_length),
        is_done=jnp.zeros((batch, num_answers), bool),
    )
    return jax.lax.while_loop(should_continue, step, state).tokens
