"""Items of annotated queries that list none: the nouns of the sentence, as a search finds those of a new query."""

import dataclasses
from collections.abc import Sequence

from calce_jax.moments.annotations import Annotation
from calce_jax.text.nouns import PHRASE_DATASETS, extract_items


def fill_items(rows: Sequence[Annotation], dataset: str) -> tuple[list[Annotation], int]:
    """Return the queries with items, and how many of them had none and have now.

    Args:
      rows: annotated queries; items that are annotated stay as they are.
      dataset: whose items are phrases or single nouns.
    """
    phrases = dataset in PHRASE_DATASETS
    filled = [
        row if row.items else dataclasses.replace(row, items=extract_items(row.query, phrases=phrases)) for row in rows
    ]
    return filled, sum(not before.items and bool(row.items) for before, row in zip(rows, filled, strict=True))
