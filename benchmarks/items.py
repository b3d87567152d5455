"""Nouns of queries by several taggers against annotated items: `python benchmarks/items.py --annotations=DIR`.

DIR is the folder of the original's annotations, with qvh/{train,val,test_dummy}.json and charades/{train,test}.json.
Each installed tagger is evaluated with three ways of making items of its tags: single nouns, sequences of nouns, and
these with the adjectives before them. Prints F1, precision and recall in percent. Items are compared in lower case and
without an article or possessive, and count once for each query. Choices are made on train.

The library uses HanTa. It is compared with TextBlob (`pip install textblob`; its lexicon and rules need no NLTK data)
and with spaCy and the model of --spacy.
"""

import argparse
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from calce_jax.text.nouns import ADJECTIVE_TAG, EXCLUDED_NOUNS, NOUN_TAG, select_nouns, tag_words

Tagger = Callable[[str], list[tuple[str, str]]]
Row = tuple[str, list[str]]
SPLITS = {
    "QVHighlights train": "qvh/train.json",
    "QVHighlights val": "qvh/val.json",
    "QVHighlights test": "qvh/test_dummy.json",
    "Charades-STA train": "charades/train.json",
    "Charades-STA test": "charades/test.json",
}
# A noun is excluded if it is tagged at least so often, and annotated as an item in a smaller share of these cases.
MIN_NOUN_COUNT, MAX_ITEM_SHARE = 10, 1 / 5
_ARTICLE = re.compile(r"^(an?|the|his|her|their|its|my|your|our) ")


def main() -> None:
    """Score every candidate on every split, and list the nouns to exclude."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the original's annotations")
    parser.add_argument("--spacy", default="en_core_web_sm", help="spaCy's model, if it is installed")
    args = parser.parse_args()
    splits = {name: read_rows(args.annotations / path) for name, path in SPLITS.items()}
    ours = cache(tag_words)
    print_scores("library", splits, lambda query: select_nouns(ours(query)))
    taggers = {"HanTa": ours, "TextBlob": textblob(), f"spaCy {args.spacy}": spacy(args.spacy)}
    for name, tagger in taggers.items():
        if tagger is None:
            print(f"{name}: not installed")
            continue
        tag = cache(tagger)
        print_scores(f"{name}, nouns", splits, lambda query, tag=tag: select_nouns(tag(query), excluded=()))
        print_scores(f"{name}, compounds", splits, lambda query, tag=tag: compounds(tag(query)))
        print_scores(
            f"{name}, phrases", splits, lambda query, tag=tag: select_nouns(tag(query), phrases=True, excluded=())
        )
    train = [row for name, rows in splits.items() if name.endswith("train") for row in rows]
    non_items = frequent_non_items(train, ours)
    print("nouns to exclude:", *sorted(non_items))
    print("also excluded by the library:", *sorted(EXCLUDED_NOUNS - non_items))


def read_rows(path: Path) -> list[Row]:
    """Return (query, items) of every row of a file."""
    return [(row["query"], row["items"]) for row in json.loads(path.read_text(encoding="utf-8"))]


def print_scores(name: str, splits: dict[str, list[Row]], items: Callable[[str], list[str]]) -> None:
    """Print one line for each split."""
    for split, rows in splits.items():
        f1, precision, recall = score(rows, items)
        print(f"{name:<40}{split:<20}{f1:6.1f}{precision:6.1f}{recall:6.1f}", flush=True)


def score(rows: Iterable[Row], items: Callable[[str], list[str]]) -> tuple[float, float, float]:
    """Return F1, precision and recall in percent, over all items of all queries."""
    num_shared = num_predicted = num_annotated = 0
    for query, annotated in rows:
        predicted, expected = (set(map(normalise_item, names)) for names in (items(query), annotated))
        num_shared += len(predicted & expected)
        num_predicted += len(predicted)
        num_annotated += len(expected)
    return (
        200 * num_shared / (num_predicted + num_annotated),
        100 * num_shared / max(num_predicted, 1),
        100 * num_shared / max(num_annotated, 1),
    )


def normalise_item(item: str) -> str:
    """Return an item in lower case, without article or possessive."""
    return _ARTICLE.sub("", item.strip().lower())


def compounds(words: Sequence[tuple[str, str]]) -> list[str]:
    """Return nouns, a sequence of them as one item."""
    nouns = [(word, tag if tag.startswith(NOUN_TAG) else "") for word, tag in words]
    return select_nouns(nouns, phrases=True, excluded=())


def frequent_non_items(rows: Iterable[Row], tagger: Tagger) -> set[str]:
    """Return the words that a tagger often tags as nouns and annotators rarely list as items."""
    noun_counts, item_counts = Counter[str](), Counter[str]()
    for query, items in rows:
        nouns = set(select_nouns(tagger(query), excluded=()))
        noun_counts.update(nouns)
        item_counts.update(nouns & {normalise_item(item) for item in items})
    return {
        word
        for word, times in noun_counts.items()
        if times >= MIN_NOUN_COUNT and item_counts[word] < MAX_ITEM_SHARE * times
    }


def textblob() -> Tagger | None:
    """Return TextBlob's tagger with our tag names, or None if it is not installed."""
    try:
        tag = importlib.import_module("textblob.en").tag
    except ImportError:
        return None
    return lambda query: [(word.lower(), our_tag(name)) for word, name in tag(query, tokenize=True)]


def spacy(model: str) -> Tagger | None:
    """Return the tagger of a spaCy model with our tag names, or None if it is not installed."""
    try:
        pipeline = importlib.import_module("spacy").load(model, disable=["ner", "parser", "lemmatizer"])
    except (ImportError, OSError):
        return None
    return lambda query: [(token.text.lower(), our_tag(token.tag_)) for token in pipeline(query)]


def our_tag(penn: str) -> str:
    """Return our name of a Penn Treebank tag."""
    return ADJECTIVE_TAG if penn.startswith("JJ") else penn


if __name__ == "__main__":
    main()
