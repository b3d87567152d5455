"""Answers that are windows of the video: what the grammar lets through, alone and in a beam search."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.config import packaged_path
from calce_jax.models.answer_grammar import AnswerConstraint, Phase
from calce_jax.models.beam_search import EOS_ID, beam_search
from calce_jax.moments.windows import parse_windows
from calce_jax.text.answer_grammar import find_meant_seconds, make_answer_grammar
from calce_jax.text.prompt import decode_answer
from calce_jax.text.tokenizers import load_t5
from tests.helpers.scripted_t5 import ScriptedT5

MAX_DURATION, LENGTH = 130.0, 48
WINDOWS = re.compile(r"\[(\[\d+, \d+\](, \[\d+, \d+\])*)?\]")


PACKAGED, PUBLISHED = "calce_jax/assets/tiny/t5", "tokenizers/t5"


@pytest.fixture(
    scope="module",
    params=[(PACKAGED, 1), pytest.param((PACKAGED, 2), marks=pytest.mark.release), (PUBLISHED, 2)],
    ids=str,
)
def case(request):
    """The tokenizer, and the grid: Flan-T5's tokens cross the borders of numbers ("2,", "▁14", "],")."""
    name, grid = request.param
    return load_t5(packaged_path(name) if name == PACKAGED else request.getfixturevalue("shared") / name), grid


@pytest.fixture(scope="module")
def t5(case):
    return case[0]


@pytest.fixture(scope="module")
def grid(case):
    return case[1]


@pytest.fixture(scope="module")
def grammar(t5, grid):
    return make_answer_grammar(t5, MAX_DURATION, grid)


@pytest.fixture(scope="module")
def packaged():
    """The small tokenizer, and its grammar of a grid of 2."""
    t5 = load_t5(packaged_path(PACKAGED))
    return t5, make_answer_grammar(t5, MAX_DURATION, 2)


def check(text, t5, grid, duration):
    """Check that an answer is windows of a video, on the grid once it is read."""
    assert WINDOWS.fullmatch(text), text
    meant, last = find_meant_seconds(t5, grid), round(duration)
    for start, end in re.findall(r"(\d+), (\d+)", text):
        assert (str(int(start)), str(int(end))) == (start, end)
        seconds = [second if (second := int(number)) == last else meant.get(second, second) for number in (start, end)]
        assert 0 <= seconds[0] < seconds[1] <= last, (text, duration)
        assert seconds[0] % grid == 0, text
        assert seconds[1] % grid == 0 or seconds[1] == last, text
    # Repeated windows are dropped; any other repair would be of something that should not have been written.
    parsed = parse_windows(text, max(duration, 0.1), meant_seconds=meant)
    assert len(parsed.windows) == len(set(re.findall(r"\[\d+, \d+\]", text))) or "113" in text or "129" in text


@pytest.mark.slow
def test_whatever_is_allowed_ends_as_windows_of_the_video(t5, grid, grammar):
    durations = jnp.array([0.0, 1.4, 2.0, 9.6, 10.0, 33.0, 99.0, 100.0, 112.0, 113.0, 125.3, 130.0] * 8, jnp.float32)
    constraint, rng = AnswerConstraint(grammar, durations), np.random.default_rng(grid)
    allowed, advance = jax.jit(constraint.allowed), jax.jit(constraint.advance)
    state, written = constraint.init(4), [[[] for _ in range(4)] for _ in durations]
    for step in range(40):
        mask = np.asarray(allowed(state))
        ended = np.asarray(state.phase) == Phase.ENDED
        np.testing.assert_array_equal(mask.any(axis=2), ~ended)  # there is always a way on
        # Windows are closed sooner or later: towards the end, what follows is the longest way at random no more.
        weights = np.where(mask, rng.random(mask.shape), 0.0)
        if step > 20:
            weights *= np.where(np.isin(grammar.next_phase, [Phase.CLOSED, Phase.ENDED]), 10, 1)[state.phase]
        choice = weights.argmax(axis=2)
        for row, beam in np.argwhere(~ended):
            written[row][beam].append(grammar.tokens[choice[row, beam]])
        state = advance(state, jnp.asarray(choice, jnp.int32))
    assert (np.asarray(state.phase) == Phase.ENDED).mean() > 0.9
    texts = set()
    for row, beams in enumerate(written):
        for tokens in beams:
            text = decode_answer(t5, tokens)
            if tokens[-1] == EOS_ID:
                check(text, t5, grid, float(durations[row]))
                texts.add(text)
    assert len(texts) > 100
    assert "[]" in texts


def follows(constraint, tokens):
    """Return whether each of the answers, all about videos of the batch in order, may be written."""
    length = max(map(len, tokens))
    allowed, advance = jax.jit(constraint.allowed), jax.jit(constraint.advance)
    known = {token: index for index, token in enumerate(constraint.tokens.tolist())}
    state, is_good = constraint.init(1), np.ones(len(tokens), bool)
    for position in range(length):
        choice = [known.get(answer[position], -1) if position < len(answer) else -2 for answer in tokens]
        mask = np.asarray(allowed(state))[:, 0]
        is_good &= [index == -2 or (index >= 0 and mask[row, index]) for row, index in enumerate(choice)]
        state = advance(state, jnp.maximum(jnp.array(choice, jnp.int32), 0)[:, None])
    return is_good


def encode(t5, text):
    return t5(text)["input_ids"]


@pytest.mark.slow
def test_every_label_may_be_written(t5, grid, grammar):
    written = {second: number for number, second in find_meant_seconds(t5, grid).items()}
    pairs = [(s, e) for s in range(0, 131, 2) for e in range(s + 2, 131, 2)]
    pairs += [(s, e) for s in range(5) for e in range(s + 1, 130, 11) if grid == 1]
    texts = [f"[[{s}, {e}]]" for s, e in pairs] + [f"[[{written.get(s, s)}, {written.get(e, e)}]]" for s, e in pairs]
    texts += ["[]", "[[0, 4], [6, 8], [20, 130]]", "[[20, 24], [2, 8]]", "[[0, 4], [0, 4]]"]
    constraint = AnswerConstraint(grammar, jnp.full(len(texts), 130.0))
    good = follows(constraint, [encode(t5, text) for text in texts])
    assert good.all(), [text for text, ok in zip(texts, good, strict=True) if not ok]


def test_other_tokens_of_the_same_text_are_allowed(t5, grammar):
    """A model may write 114 as "1" and "14", and a space alone."""
    text = [t5.token_id(piece) for piece in ("▁", "[", "[", "1", "2", ",", "▁", "1", "14", "]", "]", "</s>")]
    assert t5.unk_token_id not in text
    assert follows(AnswerConstraint(grammar, jnp.array([130.0])), [text]).all()
    assert decode_answer(t5, text) == "[[12, 114]]"


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("[[2, 14]]", 13.0),
        ("[[20, 30], [126, 132]]", 140.0),  # beyond what the grammar knows
        ("[[14, 2]]", 100.0),
        ("[[8, 8]]", 100.0),
        ("[[112, 113]]", 130.0),  # the same second in a grid of 2; in a grid of 1 it is a window
        ("[[98, 100]]", 99.0),
        ("[[02, 8]]", 100.0),
        ("[[2, 8]", 100.0),
        ("[[2, 8], ]", 100.0),
        ("[2, 8]", 100.0),
        ("[[2, 8, 10]]", 100.0),
        ("[[2.5, 8]]", 100.0),
        ("[[]]", 100.0),
        ("[[0, 1000]]", 100.0),
        ("[[0, 2]]", 1.4),
        ("a circle", 100.0),
        ("", 100.0),
    ],
)
def test_what_is_no_window_of_the_video_is_not_allowed(t5, grid, grammar, text, duration):
    is_window = text == "[[112, 113]]" and grid == 1
    assert follows(AnswerConstraint(grammar, jnp.array([duration])), [encode(t5, text)])[0] == is_window


def test_seconds_between_the_multiples_of_the_grid_end_a_window_at_the_end_of_the_video_alone(t5, grid, grammar):
    texts = ["[[3, 8]]", "[[2, 7]]", "[[2, 99]]", "[[2, 101]]", "[[99, 101]]", "[[100, 101]]"]
    good = follows(AnswerConstraint(grammar, jnp.full(len(texts), 101.2)), [encode(t5, text) for text in texts])
    # A window from 100 would have no end on the grid.
    assert good.tolist() == ([True] * 6 if grid == 1 else [False, False, False, True, False, False])


@partial(jax.jit, static_argnames=("grammar", "beams"))
def run_search(scripts, grammar, durations, beams):
    memory, mask = jnp.zeros((len(scripts), 1, 1)), jnp.ones((len(scripts), 1), bool)
    options = {"num_beams": beams, "max_length": LENGTH, "grammar": grammar, "duration": durations}
    return beam_search(ScriptedT5(scripts), memory, mask, **options)


def search(scripts, grammar=None, durations=None, beams=4):
    return jax.device_get(run_search(jnp.asarray(scripts), grammar, durations, beams))


def scripts(t5, texts, strength, seed=0):
    """Return random logits (B M V) that favour the tokens of a text each."""
    logits = np.random.default_rng(seed).normal(size=(len(texts), LENGTH, len(t5))).astype(np.float32)
    for row, text in enumerate(texts):
        ids = encode(t5, text)
        logits[row, np.arange(len(ids)), ids] += strength
    return logits


DURATIONS = jnp.array([130.0, 100.0, 113.0, 33.0, 3.0, 0.0])


def test_beams_are_windows_of_the_video(packaged):
    """The model would write something else: another length of video, seconds off the grid, nothing at all."""
    t5, grammar = packaged
    wanted = ["[[2, 7], [9, 5]]", "[[90, 140]]", "[[110, 113]]", "[[1, 3], [20, 33]]", "[[0, 9]]", "[[4, 8]]"]
    outputs = search(scripts(t5, wanted, 15.0), grammar, DURATIONS)
    for row, duration in enumerate(DURATIONS.tolist()):
        answers = [decode_answer(t5, ids) for ids in outputs.tokens[row][outputs.is_finished[row]]]
        assert answers
        assert len(answers) == len(set(map(tuple, outputs.tokens[row][outputs.is_finished[row]].tolist())))
        for text in answers:
            check(text, t5, 2, duration)
    assert decode_answer(t5, outputs.tokens[1, 0]).startswith("[[90, ")
    assert decode_answer(t5, outputs.tokens[5, 0]) == "[]"
    assert not outputs.is_finished[5, 1:].all()


def test_a_valid_answer_stays_as_it_is(packaged):
    t5, grammar = packaged
    wanted = ["[[2, 8], [20, 130]]", "[]", "[[100, 124]]", "[[0, 30], [4, 6]]"]
    logits, durations = scripts(t5, wanted, 12.0), jnp.array([130.0, 130.0, 130.0, 40.0])
    free, constrained = search(logits), search(logits, grammar, durations)
    assert [decode_answer(t5, ids) for ids in free.tokens[:, 0]] == wanted
    np.testing.assert_array_equal(constrained.tokens[:, 0], free.tokens[:, 0])
    np.testing.assert_allclose(constrained.log_probability[:, 0], free.log_probability[:, 0], rtol=1e-6)
    np.testing.assert_allclose(constrained.score[:, 0], free.score[:, 0], rtol=1e-6)


def test_a_greedy_search_takes_the_best_of_the_allowed_tokens(packaged):
    t5, grammar = packaged
    logits, durations = scripts(t5, [""] * 6, 0.0, seed=3), jnp.full(6, 77.0)
    output = search(logits, grammar, durations, beams=1)
    constraint = AnswerConstraint(grammar, durations)
    allowed, advance = jax.jit(constraint.allowed), jax.jit(constraint.advance)
    state, written = constraint.init(1), []
    for position in range(LENGTH):
        scores = np.where(np.asarray(allowed(state))[:, 0], logits[:, position, grammar.tokens], -np.inf)
        choice = scores.argmax(axis=1)
        has_ended = np.asarray(state.phase)[:, 0] == Phase.ENDED
        written.append(np.where(has_ended, 0, np.array(grammar.tokens)[choice]))
        state = advance(state, jnp.asarray(choice[:, None], jnp.int32))
    np.testing.assert_array_equal(output.tokens[:, 0], np.array(written).T)
