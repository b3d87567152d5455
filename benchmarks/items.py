"""What names things in a query, against what was annotated: `python benchmarks/items.py --annotations=DIR`.

DIR is the folder of the original's annotations, with qvh/{train,val,test_dummy}.json and charades/{train,test}.json.
Every tagger that is installed is tried with three ways of making items of its tags: nouns alone, nouns that follow each
other, and these with the adjectives before them. Prints F1, precision and recall in percent: items count as equal if
they are in lower case and without an article or possessive, and each counts once a query. Choices are made on train.

Beside the tagger that is used (HanTa): TextBlob (`pip install textblob`; its lexicon and rules need no data of NLTK's),
and spaCy with the model that --spacy names.
"""

import argparse
import importlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

from calce_jax.text.nouns import ADJECTIVE, NO_THINGS, NOUN, tagged, things

Tagger = Callable[[str], list[tuple[str, str]]]
Row = tuple[str, list[str]]
SPLITS = {
    "QVHighlights train": "qvh/train.json",
    "QVHighlights val": "qvh/val.json",
    "QVHighlights test": "qvh/test_dummy.json",
    "Charades-STA train": "charades/train.json",
    "Charades-STA test": "charades/test.json",
}
OFTEN, RARELY = 10, 1 / 5  # when a noun is none: tagged so many times, annotated in a smaller share of them
_ARTICLE = re.compile(r"^(an?|the|his|her|their|its|my|your|our) ")


def main() -> None:
    """Score every candidate on every split, and list the nouns that are none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", type=Path, required=True, help="folder of the original's annotations")
    parser.add_argument("--spacy", default="en_core_web_sm", help="spaCy's model, if it is installed")
    given = parser.parse_args()
    splits = {name: read(given.annotations / path) for name, path in SPLITS.items()}
    ours = cache(tagged)
    show("used here", splits, lambda query: things(ours(query)))
    taggers = {"HanTa": ours, "TextBlob": textblob(), f"spaCy {given.spacy}": spacy(given.spacy)}
    for name, tagger in taggers.items():
        if tagger is None:
            print(f"{name}: not installed")
            continue
        tag = cache(tagger)
        show(f"{name}, nouns", splits, lambda query, tag=tag: things(tag(query), without=()))
        show(f"{name}, compounds", splits, lambda query, tag=tag: compounds(tag(query)))
        show(f"{name}, phrases", splits, lambda query, tag=tag: things(tag(query), phrases=True, without=()))
    train = [row for name, rows in splits.items() if name.endswith("train") for row in rows]
    none = no_things(train, ours)
    print("nouns that are none:", *sorted(none))
    print("beside them in the code:", *sorted(NO_THINGS - none))


def read(path: Path) -> list[Row]:
    """Return (query, items) of every row of a file."""
    return [(row["query"], row["items"]) for row in json.loads(path.read_text(encoding="utf-8"))]


def show(name: str, splits: dict[str, list[Row]], items: Callable[[str], list[str]]) -> None:
    """Print a line a split."""
    for split, rows in splits.items():
        f1, precision, recall = score(rows, items)
        print(f"{name:<40}{split:<20}{f1:6.1f}{precision:6.1f}{recall:6.1f}", flush=True)


def score(rows: Iterable[Row], items: Callable[[str], list[str]]) -> tuple[float, float, float]:
    """Return F1, precision and recall in percent, over all items of all queries."""
    both = found = true = 0
    for query, annotated in rows:
        here, there = {to_dict(item) for item in items(query)}, {to_dict(item) for item in annotated}
        both, found, true = both + len(here & there), found + len(here), true + len(there)
    return 200 * both / (found + true), 100 * both / max(found, 1), 100 * both / max(true, 1)


def to_dict(item: str) -> str:
    """Return an item as it is compared."""
    return _ARTICLE.sub("", item.strip().lower())


def compounds(words: Sequence[tuple[str, str]]) -> list[str]:
    """Return nouns, those that follow each other as one."""
    nouns = [(word, tag if tag.startswith(NOUN) else "") for word, tag in words]
    return things(nouns, phrases=True, without=())


def no_things(rows: Iterable[Row], tagger: Tagger) -> set[str]:
    """Return the words that a tagger takes for nouns and annotators do not take for items."""
    found, annotated = Counter[str](), Counter[str]()
    for query, items in rows:
        nouns = set(things(tagger(query), without=()))
        found.update(nouns)
        annotated.update(nouns & {to_dict(item) for item in items})
    return {word for word, times in found.items() if times >= OFTEN and annotated[word] < RARELY * times}


def textblob() -> Tagger | None:
    """Return TextBlob's tagger, with names of tags as ours."""
    try:
        tag = importlib.import_module("textblob.en").tag
    except ImportError:
        return None
    return lambda query: [(word.lower(), tag_name(name)) for word, name in tag(query, tokenize=True)]


def spacy(model: str) -> Tagger | None:
    """Return the tagger of one of spaCy's models, with names of tags as ours."""
    try:
        pipeline = importlib.import_module("spacy").load(model, disable=["ner", "parser", "lemmatizer"])
    except (ImportError, OSError):
        return None
    return lambda query: [(token.text.lower(), tag_name(token.tag_)) for token in pipeline(query)]


def tag_name(penn: str) -> str:
    """Return what is called so here, of a tag of the Penn treebank."""
    return ADJECTIVE if penn.startswith("JJ") else penn


if __name__ == "__main__":
    main()
