"""Nouns and noun phrases of queries."""

import gzip
import json
import pickle
from pathlib import Path

import pytest

from benchmarks.items import score
from calce_jax.text.nouns import TAGGER_MODEL, extract_items, load_tagger


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


def test_the_tagger_reads_no_file_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / TAGGER_MODEL.name).write_bytes(gzip.compress(pickle.dumps("not the model of the package")))
    monkeypatch.chdir(tmp_path)
    load_tagger.cache_clear()
    assert extract_items("a dog") == ["dog"]


@pytest.mark.parametrize(("path", "min_f1"), [("qvh/val.json", 80), ("charades/test.json", 90)])
def test_most_annotated_items_of_real_queries_are_found(shared: Path, path: str, min_f1: float):
    rows = json.loads((shared / "annotations/calce" / path).read_text())[:150]  # all: 85.0, 94.6
    f1, _, _ = score([(row["query"], row["items"]) for row in rows], extract_items)
    assert f1 > min_f1
