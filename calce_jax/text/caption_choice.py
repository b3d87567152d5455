"""Which captions of a video enter a batch row, where it has more than the row holds.

The model compares the captions of a row with the query, and uses a few of them (`calce_jax.models.prompt_packing`). The
host cannot afford the model for those that do not fit the row, so it ranks captions by the words that they share with
the query: a BERT token of the query that n of N captions have counts log(N / n), whatever its number in a caption, so
names count more than articles, and [CLS] and [SEP], which all have, nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

TokenIds = Sequence[int]


def choose_captions(query: TokenIds, captions: Sequence[TokenIds], max_captions: int) -> list[int]:
    """Return the positions of the captions that share most with the query, at most `max_captions`, in order of time.

    Args:
      query: BERT ids.
      captions: BERT ids of each caption, in order of time.
      max_captions: C.
    """
    if len(captions) <= max_captions:
        return list(range(len(captions)))
    return sorted(rank_by_shared_tokens(query, captions)[:max_captions])


def fit_captions(
    query: TokenIds,
    captions: Sequence[TokenIds],
    candidates: Sequence[int],
    token_counts: Sequence[int],
    max_tokens: int,
) -> list[int]:
    """Return the candidates that share most with the query, as many as have `max_tokens` T5 tokens, in order of time.

    Args:
      query: BERT ids.
      captions: BERT ids of each caption, in order of time.
      candidates: positions of captions, ascending.
      token_counts: T5 tokens of each candidate.
      max_tokens: at most so many of all together.
    """
    if sum(token_counts) <= max_tokens:
        return list(candidates)
    count_of = dict(zip(candidates, token_counts, strict=True))
    ranked = [position for position in rank_by_shared_tokens(query, captions) if position in count_of]
    totals = accumulate(count_of[position] for position in ranked)
    return sorted(position for position, total in zip(ranked, totals, strict=True) if total <= max_tokens)


def rank_by_shared_tokens(query: TokenIds, captions: Sequence[TokenIds]) -> list[int]:
    """Return the positions of all captions, those that share most with the query first; ties keep the order of time."""
    wanted = set(query)
    shared = [wanted.intersection(caption) for caption in captions]
    frequency = Counter(token for tokens in shared for token in tokens)
    # Whole numbers: a sum of floats would depend on the order of a set.
    weight = {token: round(1e6 * math.log(len(captions) / count)) for token, count in frequency.items()}
    score = [sum(weight[token] for token in tokens) for tokens in shared]
    return sorted(range(len(captions)), key=lambda position: -score[position])
