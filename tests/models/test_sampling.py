"""Answers drawn from the model, against its distribution and against greedy search."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from calce_jax.models.beam_search import beam_search
from calce_jax.models.calce_sizes import T5Config
from calce_jax.models.sampling import sample_answers
from calce_jax.models.t5 import EOS_ID, T5

pytestmark = pytest.mark.slow

VOCAB, LENGTH = 4, 3
encode, decode = nnx.jit(T5.encode), nnx.jit(T5.decode)


@pytest.fixture(scope="module")
def t5() -> T5:
    config = T5Config(width=16, heads=2, head_width=8, mlp_width=24, encoder_depth=1, decoder_depth=2, vocab=VOCAB)
    return T5(config, rngs=nnx.Rngs(7))


@pytest.fixture(scope="module")
def prompts(t5: T5) -> tuple[jax.Array, jax.Array]:
    x = 2.0 * jax.random.normal(jax.random.key(1), (4, 9, 16))
    mask = jnp.arange(9)[None] < jnp.array([9, 4, 7, 2])[:, None]
    return encode(t5, x, mask), mask


def sample(t5: T5, prompts: tuple[jax.Array, jax.Array], num_answers: int, seed: int = 0, **options: float):
    run = nnx.jit(
        lambda t5, memory, mask, key: sample_answers(
            t5, memory, mask, key, num_answers=num_answers, max_length=LENGTH, **options
        )
    )
    return np.asarray(run(t5, *prompts, jax.random.key(seed)))


def is_whole(answer: np.ndarray) -> bool:
    """Return whether an answer is 0 after its end token, and only there unless 0 was drawn."""
    ends = np.flatnonzero(answer == EOS_ID)
    return not len(ends) or not answer[ends[0] + 1 :].any()


def probability(t5: T5, memory: jax.Array, mask: jax.Array, temperature: float) -> dict[tuple[int, ...], float]:
    """Return the probability of every answer to one prompt, computed without a cache."""
    answers = np.array([a for a in itertools.product(range(VOCAB), repeat=LENGTH) if is_whole(np.array(a))], np.int32)
    count = len(answers)
    ids = jnp.asarray(np.pad(answers[:, :-1], ((0, 0), (1, 0))))
    logits = decode(t5, ids, jnp.repeat(memory[None], count, 0), jnp.repeat(mask[None], count, 0))
    tokens = np.asarray(jax.nn.log_softmax(logits / temperature))
    tokens = np.take_along_axis(tokens, answers[:, :, None], axis=-1)[..., 0]
    ended = np.cumsum(answers == EOS_ID, axis=1) - (answers == EOS_ID) > 0
    values = np.exp(np.where(ended, 0.0, tokens).sum(axis=1))
    assert values.sum() == pytest.approx(1.0, abs=1e-5)
    return {tuple(answer): value for answer, value in zip(answers.tolist(), values.tolist(), strict=True)}


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_answers_follow_the_distribution_of_the_model(t5, prompts, temperature):
    # Eight answers to each of so many copies of a prompt: an answer's cache has the positions of all beside it.
    copies, count = 500, 4000
    many = tuple(jnp.repeat(array, copies, axis=0) for array in prompts)
    drawn = sample(t5, many, count // copies, temperature=temperature).reshape(len(prompts[0]), count, LENGTH)
    for row, answers in enumerate(drawn):
        expected = probability(t5, prompts[0][row], prompts[1][row], temperature)
        seen = dict.fromkeys(expected, 0)
        for answer in answers.tolist():
            seen[tuple(answer)] += 1
        # Half the sum of differences: about 0.4 sqrt(answers / draws) by chance, here 0.04 for 40 answers.
        distance = sum(abs(seen[answer] / count - value) for answer, value in expected.items()) / 2
        assert distance < 0.06


def test_a_low_temperature_is_greedy(t5, prompts):
    greedy = nnx.jit(lambda t5, *prompt: beam_search(t5, *prompt, num_beams=1, max_length=LENGTH))(t5, *prompts)
    drawn = sample(t5, prompts, 3, temperature=1e-5)
    np.testing.assert_array_equal(drawn, np.repeat(np.asarray(greedy.tokens), 3, axis=1))


def test_what_follows_the_end_is_padding(t5, prompts):
    drawn = sample(t5, prompts, 50).reshape(-1, LENGTH)
    assert (drawn[:, :-1] == EOS_ID).any()
    assert all(is_whole(answer) for answer in drawn)


def test_answers_depend_on_the_key_alone(t5, prompts):
    first, again, other = (sample(t5, prompts, 8, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
