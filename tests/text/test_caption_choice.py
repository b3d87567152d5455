"""Which captions enter a row that cannot hold all: those that share words with the query, wherever they are."""

import pytest

from calce_jax.text.caption_choice import choose_captions, fit_captions, rank_by_shared_tokens

CLS, SEP, A, DOG, BOAT, BRIDGE = 2, 3, 10, 11, 12, 13
QUERY = [CLS, A, DOG, A, BOAT, SEP]


def caption(*words):
    return [CLS, *words, SEP]


def test_rare_words_count_most_and_what_all_captions_have_nothing():
    captions = [caption(A, BRIDGE), caption(A, BOAT), caption(A), caption(DOG, A, BOAT), caption(A, DOG), caption(DOG)]
    # Of six captions five have "a", three "dog", two "boat": log(6/5) < log(6/3) < log(6/2).
    assert rank_by_shared_tokens(QUERY, captions) == [3, 1, 4, 5, 0, 2]
    assert rank_by_shared_tokens([CLS, SEP], captions) == [0, 1, 2, 3, 4, 5]
    assert rank_by_shared_tokens(QUERY, []) == []


def test_a_word_that_a_caption_repeats_counts_once():
    captions = [caption(A), caption(DOG, DOG, DOG, DOG), caption(DOG, BOAT), caption(DOG)]
    assert rank_by_shared_tokens(QUERY, captions) == [2, 0, 1, 3]


@pytest.mark.parametrize("count", [65, 200, 1500])
def test_the_last_caption_stays_if_it_is_the_most_alike(count):
    captions = [caption(A, BRIDGE)] * (count - 1) + [caption(DOG, BOAT)]
    assert choose_captions(QUERY, captions, 64) == [*range(63), count - 1]
    assert choose_captions(QUERY, captions, count) == list(range(count))


def test_captions_that_fit_are_those_that_share_most():
    captions = [caption(A), caption(BRIDGE), caption(DOG), caption(BOAT, DOG), caption(BOAT)]
    candidates, token_counts = [0, 1, 2, 3], [5, 5, 4, 6]
    assert rank_by_shared_tokens(QUERY, captions) == [3, 0, 2, 4, 1]
    assert fit_captions(QUERY, captions, candidates, token_counts, 20) == candidates
    assert fit_captions(QUERY, captions, candidates, token_counts, 19) == [0, 2, 3]
    assert fit_captions(QUERY, captions, candidates, token_counts, 11) == [0, 3]
    assert fit_captions(QUERY, captions, candidates, token_counts, 5) == []
