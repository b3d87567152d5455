"""Beam search against exhaustive search, against a plain greedy loop, and against itself in another batch."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.models.beam_search import EOS_ID, NEG_INF, BeamState, _beam_step, beam_search
from calce_jax.models.beams import BeamSearchOutput
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.t5 import T5

pytestmark = pytest.mark.slow

VOCAB, LENGTH = 5, 4
encode, decode = nnx.jit(T5.encode), nnx.jit(T5.decode)


@pytest.fixture(scope="module")
def t5() -> T5:
    config = T5Config(width=16, heads=2, head_width=8, mlp_width=24, encoder_depth=1, decoder_depth=2, vocab=VOCAB)
    return T5(config, rngs=nnx.Rngs(7))


@pytest.fixture(scope="module")
def prompts(t5: T5) -> tuple[jax.Array, jax.Array]:
    x = 2.0 * jax.random.normal(jax.random.key(1), (6, 9, 16))
    mask = jnp.arange(9)[None] < jnp.array([9, 4, 7, 9, 2, 5])[:, None]
    return encode(t5, x, mask), mask


def search(t5: T5, memory: jax.Array, mask: jax.Array, beams: int, **kwargs: str) -> BeamSearchOutput:
    run = nnx.jit(lambda t5, memory, mask: beam_search(t5, memory, mask, num_beams=beams, max_length=LENGTH, **kwargs))
    return run(t5, memory, mask)


def log_probabilities(t5: T5, memory: jax.Array, mask: jax.Array, answers: np.ndarray) -> np.ndarray:
    """Return the log-probability (N, A) of each token of answers (N, A) to one prompt, computed without a cache."""
    ids = jnp.asarray(np.pad(answers[:, :-1], ((0, 0), (1, 0))), jnp.int32)
    n = len(answers)
    logits = decode(t5, ids, jnp.repeat(memory[None], n, 0), jnp.repeat(mask[None], n, 0))
    return np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), answers[:, :, None], axis=-1)[..., 0]


def test_enough_beams_find_the_best_of_all_answers(t5, prompts):
    memory, mask = prompts
    output = search(t5, memory, mask, beams=60)
    all_answers = np.array(list(itertools.product(range(VOCAB), repeat=LENGTH)))
    for sample in range(len(memory)):
        token_scores = log_probabilities(t5, memory[sample], mask[sample], all_answers)
        first_end = np.where((all_answers == EOS_ID).any(1), (all_answers == EOS_ID).argmax(1), LENGTH - 1)
        length = first_end + 1
        total = np.where(np.arange(LENGTH)[None] < length[:, None], token_scores, 0).sum(1)
        best = (total / length).argmax()
        expected = np.where(np.arange(LENGTH) < length[best], all_answers[best], 0)
        np.testing.assert_array_equal(output.tokens[sample, 0], expected)
        # Sums of four float32 log-probabilities, with and without a cache.
        np.testing.assert_allclose(output.score[sample, 0], total[best] / length[best], rtol=1e-5)
        np.testing.assert_allclose(output.log_probability[sample, 0], total[best], rtol=1e-5)


def test_one_beam_is_greedy(t5, prompts):
    memory, mask = prompts
    output = search(t5, memory, mask, beams=1)
    for sample in range(len(memory)):
        answer = np.zeros((1, LENGTH), np.int32)
        for position in range(LENGTH):
            ids = jnp.asarray(np.pad(answer[:, :-1], ((0, 0), (1, 0))))
            logits = decode(t5, ids, memory[sample][None], mask[sample][None])
            answer[0, position] = int(logits[0, position].argmax())
            if answer[0, position] == EOS_ID:
                break
        np.testing.assert_array_equal(output.tokens[sample, 0], answer[0])


def test_answers_do_not_depend_on_the_batch(t5, prompts):
    memory, mask = prompts
    batched = search(t5, memory, mask, beams=3)
    for sample in (1, 4):
        alone = search(t5, memory[sample : sample + 1], mask[sample : sample + 1], beams=3)
        np.testing.assert_array_equal(batched.tokens[sample], alone.tokens[0])
        np.testing.assert_allclose(batched.score[sample], alone.score[0], rtol=1e-5)


def test_padding_on_the_right_changes_nothing(t5, prompts):
    memory, mask = prompts
    wide = jnp.pad(memory, ((0, 0), (0, 5), (0, 0)), constant_values=3.0)
    output, padded = search(t5, memory, mask, beams=3), search(t5, wide, jnp.pad(mask, ((0, 0), (0, 5))), beams=3)
    np.testing.assert_array_equal(output.tokens, padded.tokens)


def test_answers_are_distinct_and_best_first(t5, prompts):
    output = search(t5, *prompts, beams=4)
    assert (np.diff(output.score, axis=1) <= 0).all()
    for sample in np.asarray(output.tokens):
        assert len({tuple(answer) for answer in sample}) == 4


def test_reference_divides_unfinished_answers_by_length_plus_one(t5, prompts):
    ours, theirs = search(t5, *prompts, beams=4), search(t5, *prompts, beams=4, behaviour="reference")
    unfinished = ~np.asarray(theirs.is_finished)
    assert unfinished.any()
    np.testing.assert_allclose(
        np.asarray(theirs.score)[unfinished], np.asarray(theirs.log_probability)[unfinished] / (LENGTH + 1), rtol=1e-6
    )
    unfinished = ~np.asarray(ours.is_finished)
    np.testing.assert_allclose(
        np.asarray(ours.score)[unfinished], np.asarray(ours.log_probability)[unfinished] / LENGTH, rtol=1e-6
    )


def state_of_two_beams(position, log_probability, finished_score):
    """Return the state of a search with two beams that have written `position` tokens each."""
    tokens = jnp.zeros((1, 2, 4), jnp.int32)
    score = jnp.asarray([finished_score], jnp.float32)
    finished = BeamSearchOutput(
        tokens=tokens,
        score=score,
        log_probability=score,
        is_finished=score > NEG_INF,
        steps=jnp.int32(0),
    )
    return BeamState(
        position=jnp.int32(position),
        tokens=tokens,
        log_probability=jnp.asarray([log_probability], jnp.float32),
        cache=(),
        beam_indices=tokens,
        finished=finished,
        is_done=jnp.zeros(1, bool),
    )


def logits_of(*rows):
    return jnp.log(jnp.asarray([rows], jnp.float32))


def test_an_end_is_taken_among_the_best_k_candidates_alone():
    # Of the first beam the end (token 1) is the third best; the second beam is hopeless.
    for probabilities, is_finished in (((0.4, 0.25, 0.35), False), ((0.4, 0.35, 0.25), True)):
        state = state_of_two_beams(1, (0.0, -50.0), (NEG_INF, NEG_INF))
        after = _beam_step(state, logits_of(probabilities, (0.4, 0.25, 0.35)), 1, 0)
        assert bool(after.finished.is_finished.any()) is is_finished


def test_an_answer_is_scored_by_its_log_probability_per_token():
    # The end is the third token.
    after = _beam_step(
        state_of_two_beams(2, (-0.4, -50.0), (NEG_INF, NEG_INF)), logits_of((0.4, 0.5, 0.1), (0.4, 0.5, 0.1)), 1, 0
    )
    total = -0.4 + math.log(0.5)
    np.testing.assert_allclose(after.finished.log_probability[0, 0], total, rtol=1e-6)
    np.testing.assert_allclose(after.finished.score[0, 0], total / 3, rtol=1e-6)


def test_a_search_goes_on_while_its_best_beam_may_win():
    # Two answers of -0.1 and -0.5 a token; of length 2 the best running one has log(0.5) / 2 = -0.35, the worst less.
    logits = logits_of((0.5, 0.01, 0.49), (0.5, 0.01, 0.49))
    assert not bool(_beam_step(state_of_two_beams(1, (0.0, -9.0), (-0.1, -0.5)), logits, 1, 0).is_done[0])
    assert bool(_beam_step(state_of_two_beams(1, (-0.4, -9.0), (-0.1, -0.5)), logits, 1, 0).is_done[0])
