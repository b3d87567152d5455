"""Windows read on the device, against the parser of the host."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from calce_jax.config import packaged_path
from calce_jax.models.answer_parsing import parse_answers, piece_characters
from calce_jax.moments.windows import parse_windows
from calce_jax.text.prompt import answer_pieces, decode_answer
from calce_jax.text.tokenizers import load_t5

LENGTH, MAX_WINDOWS = 48, 6
# Ids 2 to 15; digits and signs share pieces, as in the vocabulary of Flan-T5.
PIECES = ["<pad>", "</s>", " [", "[", "]", "],", ",", " ", "1", "12", " 30", "2,", "]]", "9", ".", " 1999"]


@pytest.fixture(scope="module")
def t5():
    return load_t5(packaged_path("calce_jax/assets/tiny/t5"))


@partial(jax.jit, static_argnames="max_windows")
def parse(tokens, characters, latest_end, max_windows=MAX_WINDOWS):
    return parse_answers(tokens, characters, latest_end, max_windows)


def read(answers, characters, latest_end, **options):
    """Return the windows of each answer as lists of ints; None for a malformed one."""
    tokens = np.zeros((len(answers), LENGTH), np.int32)
    for row, ids in zip(tokens, answers, strict=True):
        row[: len(ids)] = ids
    parsed = jax.device_get(parse(tokens, characters, jnp.full(len(answers), latest_end, jnp.float32), **options))
    assert not parsed.windows[~parsed.mask].any()
    return [
        windows[mask].astype(int).tolist() if well_formed else None
        for windows, mask, well_formed in zip(parsed.windows, parsed.mask, parsed.well_formed, strict=True)
    ]


def random_windows(rng, count, last=150):
    return [sorted(rng.choice(last + 1, 2, replace=False).tolist()) for _ in range(count)]


def test_answers_as_the_tokenizer_writes_them_are_read_as_by_the_host(t5):
    rng = np.random.default_rng(0)
    # Windows of an answer differ, since the host drops repeated ones.
    answers = [random_windows(rng, count) for count in (1, 2, 3, 4) for _ in range(25)]
    texts = [str(windows) for windows in answers if len({tuple(window) for window in windows}) == len(windows)]
    texts += ["[[0, 1]]", "[[0,150],[3,4]]", " [ [ 1 , 2 ] ] "]
    ids = [t5.encode(text) for text in texts]
    read_windows = read(ids, piece_characters(answer_pieces(t5), len(t5) + 3), 150)
    for tokens, windows in zip(ids, read_windows, strict=True):
        parsed = parse_windows(decode_answer(t5, tokens), 150)
        assert parsed.status == "exact"
        assert windows == parsed.windows
    assert read([t5.encode("[]")], piece_characters(answer_pieces(t5), len(t5)), 150) == [[]]


def test_what_the_device_reads_of_any_tokens_is_what_the_host_calls_exact(t5):
    """Pieces drawn at random: few are answers, so also answers with one token replaced, removed or repeated."""
    rng, characters = np.random.default_rng(1), piece_characters(answer_pieces(t5), len(t5))
    signs = [t5.token_id(piece) for piece in ("▁", "[", "]", ",", "1", "12", "150", "a")]
    answers = []
    for _ in range(400):
        ids = t5.encode(str(random_windows(rng, int(rng.integers(1, 3)))))[:-1]
        place, sign = int(rng.integers(len(ids))), int(rng.choice(signs))
        change = rng.integers(4)
        ids[place : place + int(change != 3)] = {0: [sign], 1: [], 2: [ids[place]] * 2, 3: [sign]}[int(change)]
        answers.append([*ids, 1])
    answers += [[*rng.choice(signs, int(rng.integers(1, 9))).tolist(), 1] for _ in range(200)]
    num_read = 0
    for ids, windows in zip(answers, read(answers, characters, 150), strict=True):
        parsed = parse_windows(decode_answer(t5, ids), 150)
        text = decode_answer(t5, ids).replace(" ", "")
        assert (windows is not None) == (parsed.status == "exact" or text == "[]"), text
        assert windows is None or windows == parsed.windows
        num_read += windows is not None
    assert 50 < num_read < 500


def ids_of(*pieces):
    return [PIECES.index(piece) for piece in pieces]


@pytest.mark.parametrize(
    ("pieces", "windows"),
    [
        ([" [", "[", "12", ",", " 30", "]", "]", "</s>"], [[12, 30]]),
        ([" [", "[", "1", "2,", " 30", "]]", "</s>"], [[12, 30]]),
        ([" [", "[", "1", "2,", " 30", "],", " [", " ", "1", ",", "1", "9", " ", "]]", "</s>"], [[12, 30], [1, 19]]),
        # What follows the end is not read.
        ([" [", "]", "</s>", "9", "<pad>"], []),
        ([" [", "[", "12", ",", " 30", "]", "]"], None),  # no end
        ([" [", "[", "12", ",", " 30", "]", "</s>"], None),  # half open
        (["[", "12", ",", " 30", "]", "</s>"], None),
        ([" [", "[", "12", ",", " 30", ",", " 30", "]]", "</s>"], None),  # an odd count
        ([" [", "[", "12", "]]", "</s>"], None),
        ([" [", "[", "12", " 30", "]]", "</s>"], None),
        ([" [", "[", "12", ",", " 30", "],", "]", "</s>"], None),  # a comma without a window
        ([" [", "[", " 30", ",", "12", "]]", "</s>"], None),  # ends before it starts
        ([" [", "[", "12", ",", "12", "]]", "</s>"], None),
        ([" [", "[", "12", ",", " 1999", "]]", "</s>"], None),  # beyond the video
        ([" [", "[", "12", ",", *["9"] * 20, "]]", "</s>"], None),  # would overflow
        ([" [", "[", "12", ",", "1", ".", "9", "]]", "</s>"], None),
        ([" [", "[", "12", ",", "<pad>", " 30", "]]", "</s>"], None),
        (["</s>"], None),
        (["<pad>"], None),
    ],
)
def test_an_answer_is_well_formed_or_has_no_windows(pieces, windows):
    assert read([ids_of(*pieces)], piece_characters(PIECES, 20), 153) == [windows]


def test_windows_are_read_up_to_the_end_that_is_allowed_and_to_their_number():
    answer = ids_of(" [", "[", "12", ",", " 30", "],", " [", "1", ",", "9", "]]", "</s>")
    characters = piece_characters(PIECES, 20)
    assert read([answer], characters, 30) == [[[12, 30], [1, 9]]]
    assert read([answer], characters, 29) == [None]
    assert read([answer], characters, 30, max_windows=2) == [[[12, 30], [1, 9]]]
    assert read([answer], characters, 30, max_windows=1) == [None]


def test_ids_beyond_the_tokenizer_are_malformed():
    assert read([[*ids_of(" ["), 18, *ids_of("]", "</s>")]], piece_characters(PIECES, 20), 30) == [None]
