"""The things named in a new query. Annotated queries come with theirs; a search has to find them.

The Hanover Tagger (Wartena 2019) says which words are nouns; its model of English comes with its package.
`benchmarks/items.py` compares what comes of it with what was annotated.
"""

import re
from collections.abc import Collection, Iterable
from functools import cache

from HanTa.HanoverTagger import HanoverTagger

TAGGER_MODEL = "morphmodel_en.pgz"
# Tags of the British National Corpus: NN0, NN1, NN2 and NP0 are nouns, AJ0, AJC and AJS adjectives.
NOUN_TAG, ADJECTIVE_TAG = "N", "AJ"
# Words that are tagged as nouns in ten training queries or more, of which annotators made items in fewer than one of
# five: "in front of", and verbs; and "left", which is too rare there, beside "right".
_EXCLUDED_NOUNS = """
    doing drinking films front interviews it's left middle opening points reports right sneezing snuggling start talk
    talks turn walk walks washing
"""
EXCLUDED_NOUNS = frozenset(_EXCLUDED_NOUNS.split())
MAX_LETTERS = 64  # of a word that the tagger reads; its time grows with the square: 2000 letters took it 17 s
_WORD = re.compile(r"[\w'-]+|[^\w\s]")


def extract_items(query: str, *, phrases: bool = False) -> list[str]:
    """Return what names things in a query, in order, lower case, each once.

    Items are one line of the prompt, a hint rather than a condition.

    Args:
      query: an English sentence; others give what they give, without an error.
      phrases: nouns with the adjectives and nouns before them ("red circle"), as the shapes dataset has them, rather
        than every noun alone, as QVHighlights' and Charades-STA's items mostly are.
    """
    return select_nouns(tag_words(query), phrases=phrases)


def tag_words(query: str) -> list[tuple[str, str]]:
    """Return the words and signs of a query in lower case, each with its part of speech."""
    words = _WORD.findall(query)
    if not words:
        return []
    tags = _tagger().tag_sent([word[:MAX_LETTERS] for word in words])
    return [(word.lower(), str(tag)) for word, (_, _, tag) in zip(words, tags, strict=True)]


def select_nouns(
    words: Iterable[tuple[str, str]], *, phrases: bool = False, excluded: Collection[str] = EXCLUDED_NOUNS
) -> list[str]:
    """Return the nouns or noun phrases among tagged words, each once; `excluded` names nouns that are none."""
    items: list[str] = []
    phrase: list[str] = []  # adjectives and nouns that follow each other
    phrase_length = 0  # of the run up to its last noun
    for word, tag in [*words, ("", "")]:
        is_noun = tag.startswith(NOUN_TAG) and word not in excluded
        if is_noun and not phrases:
            items.append(word)
        elif is_noun or tag.startswith(ADJECTIVE_TAG):
            phrase.append(word)
            phrase_length = len(phrase) if is_noun else phrase_length
        else:
            items += [" ".join(phrase[:phrase_length])] if phrase_length else []
            phrase, phrase_length = [], 0
    return list(dict.fromkeys(items))


@cache
def _tagger() -> HanoverTagger:
    return HanoverTagger(TAGGER_MODEL)
