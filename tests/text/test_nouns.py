"""Nouns and noun phrases of queries."""

import json
from pathlib import Path

import pytest

from benchmarks.items import score
from calce_jax.text.nouns import extract_items


@pytest.mark.parametrize(
    ("query", "nouns", "phrases"),
    [
        ("A red circle moves to the left.", ["circle"], ["red circle"]),
        ("Someone talks about a lighthouse.", ["lighthouse"], ["lighthouse"]),
        ("Woman holds up a green bottle.", ["woman", "bottle"], ["woman", "green bottle"]),
        (
            "Man in front of a big brown coffee machine",
            ["man", "coffee", "machine"],
            ["man", "big brown coffee machine"],
        ),
        ("A girl, a girl and her young dog", ["girl", "dog"], ["girl", "young dog"]),
        ("They are young and green", [], []),
        ("", [], []),
        ("...!", [], []),
        ("\N{DOG FACE} a dog", ["dog"], ["dog"]),
        ("他在做饭", [], []),
        (f"a red {'z' * 20_000} and a dog", ["z" * 20_000, "dog"], [f"red {'z' * 20_000}", "dog"]),
        ("-" * 20_000 + " a dog", ["dog"], ["dog"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_nouns_and_phrases(query: str, nouns: list[str], phrases: list[str]):
    assert extract_items(query) == nouns
    assert extract_items(query, phrases=True) == phrases


@pytest.mark.parametrize(("path", "min_f1"), [("qvh/val.json", 80), ("charades/test.json", 90)])
def test_most_annotated_items_of_real_queries_are_found(shared: Path, path: str, min_f1: float):
    rows = json.loads((shared / "annotations/calce" / path).read_text())[:150]  # all: 85.0, 94.6
    f1, _, _ = score([(row["query"], row["items"]) for row in rows], extract_items)
    assert f1 > min_f1
