"""The words of a sentence that say what happens: without stop words, and without endings of inflection.

They tell whether two sentences may be about the same thing. Words of equal meaning ("man", "guy") are not equal here;
words that only look alike ("poster", "posts") may be.
"""

import re

_WORD = re.compile(r"[^\W_]+")
# Articles, pronouns, prepositions, conjunctions, auxiliaries and adverbs; and what frames a query ("We can see ...",
# "... appears").
_STOP_WORDS = """
    a about above across after again against all along also am an and another any anybody anyone anything are around as
    at away back be because been before behind being below beside between both but by can could did do does doing down
    during each either else ever every everybody everyone everything few first for from front get gets getting got had
    has have having he her here hers herself him himself his how i if in inside into is it its itself just last less
    like many may me might mine more most much must my myself near neither never next no nobody none nor not nothing
    now of off often on once one only onto or other others our ours out outside over own same shall she should since so
    some somebody someone something still such than that the their theirs them themselves then there these they this
    those through to together too toward towards two three under until up upon us very was we were what when where
    whether which while who whom whose why will with within without would yet you your yours
    appear appears appearing see seen several various
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_ENDINGS = ("ing", "ed", "es", "s", "er", "ly")
_MIN_STEM = 3  # letters that an ending must leave


def content_words(text: str) -> frozenset[str]:
    """Return the stems of the content words of an English text, in lower case: "walks" and "walking" have the same."""
    words = (word for word in _WORD.findall(text.lower()) if len(word) > 1 and word not in STOP_WORDS)
    return frozenset(_stem(word) for word in words)


def _stem(word: str) -> str:
    ending = next((e for e in _ENDINGS if word.endswith(e) and len(word) - len(e) >= _MIN_STEM), "")
    stem = word.removesuffix(ending)
    if ending in ("ing", "ed", "er") and stem[-1] == stem[-2]:
        stem = stem[:-1]  # "running"
    return stem.removesuffix("e") if len(stem) > _MIN_STEM else stem
