"""Items of a query: the nouns or noun phrases in it, for the queries of a search and annotated ones without items.

Parts of speech come from the Hanover Tagger (Wartena 2019), whose English model is in its package.
`benchmarks/items.py` compares the result with annotated items.
"""

import re
from collections.abc import Collection, Iterable
from functools import cache
from pathlib import Path

import HanTa
from HanTa.HanoverTagger import HanoverTagger

# With its folder: HanTa looks for a bare name in the working folder first, and the file is a pickle.
TAGGER_MODEL = Path(HanTa.__path__[0]) / "morphmodel_en.pgz"
# Tags of the British National Corpus: NN0, NN1, NN2 and NP0 are nouns, AJ0, AJC and AJS adjectives, VVB, VVD, VVG, VVI,
# VVN and VVZ verbs other than auxiliaries.
NOUN_TAG, ADJECTIVE_TAG, VERB_TAG = "N", "AJ", "VV"
# Words that are tagged as nouns in at least ten training queries and are annotated items in fewer than a fifth of them
# ("in front of", and verbs); and "left", which is rarer, because of "right".
_EXCLUDED_NOUNS = """
    doing drinking films front interviews it's left middle opening points reports right sneezing snuggling start talk
    talks turn walk walks washing
"""
EXCLUDED_NOUNS = frozenset(_EXCLUDED_NOUNS.split())
# Datasets whose annotated items are phrases, and not single nouns.
PHRASE_DATASETS = frozenset({"shapes"})
MAX_LETTERS = 64  # letters of a word that are tagged; the time is quadratic: 2000 letters took 17 s
WORD = re.compile(r"[\w'-]+|[^\w\s]")


def extract_items(query: str, *, phrases: bool = False) -> list[str]:
    """Return the items of a query in order of appearance, lower case, without repeats.

    Args:
      query: an English sentence; for other text the result is arbitrary, but no error.
      phrases: nouns with the adjectives and nouns before them ("red circle"), like the items of the shapes dataset,
        instead of single nouns, like most items of QVHighlights and Charades-STA.
    """
    return select_nouns(tag_words(query), phrases=phrases)


def tag_words(query: str) -> list[tuple[str, str]]:
    """Return the words and punctuation of a query in lower case, each with its part-of-speech tag."""
    words = WORD.findall(query)
    if not words:
        return []
    tags = load_tagger().tag_sent([word[:MAX_LETTERS] for word in words])
    return [(word.lower(), str(tag)) for word, (_, _, tag) in zip(words, tags, strict=True)]


def select_nouns(
    words: Iterable[tuple[str, str]], *, phrases: bool = False, excluded: Collection[str] = EXCLUDED_NOUNS
) -> list[str]:
    """Return the nouns or noun phrases of tagged words without repeats; `excluded` words do not count as nouns."""
    items: list[str] = []
    phrase: list[str] = []  # current run of adjectives and nouns
    phrase_length = 0  # words of the run up to its last noun
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
def load_tagger() -> HanoverTagger:
    """Return the tagger; the first call reads its model, which takes 0.1 s, or twice that if garbage is collected."""
    return HanoverTagger(str(TAGGER_MODEL))
