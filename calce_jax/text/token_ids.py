"""Lists of token ids: of many texts at once, the longest that fits, joined to spans, padded."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer


def encode_batch(tokenizer: Tokenizer, texts: list[str], *, special_tokens: bool = False) -> list[list[int]]:
    """Return the token ids of each text, with `special_tokens` ([CLS] and [SEP] of BERT) or without."""
    return [encoded.ids for encoded in tokenizer.encode_batch_fast(texts, add_special_tokens=special_tokens)]


def longest_prefix(max_count: int, max_ids: int, encode: Callable[[int], list[int]]) -> list[int] | None:
    """Return `encode(n)` for the largest n <= `max_count` with at most `max_ids` ids; None if `encode(0)` has more."""
    n = bisect_right(range(max_count + 1), max_ids, key=lambda n: len(encode(n))) - 1
    return encode(n) if n >= 0 else None


def concatenate(spans: Iterable[Sequence[int]]) -> tuple[list[int], np.ndarray]:
    """Return the concatenated ids, and the start and length of each span, int32 (I, 2)."""
    spans = list(spans)
    sizes = np.array([len(piece) for piece in spans], np.int32)
    starts = np.concatenate([np.zeros(1, np.int32), np.cumsum(sizes, dtype=np.int32)[:-1]])
    starts[sizes == 0] = 0
    return [i for piece in spans for i in piece], np.stack([starts, sizes], axis=1)


def pad(ids: Sequence[int], size: int) -> np.ndarray:
    """Return ids padded with zeros at their end, int32 (size,)."""
    padded = np.zeros(size, np.int32)
    padded[: len(ids)] = ids
    return padded
