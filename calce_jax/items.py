"""The things named in a new query. Annotated queries come with theirs; a search has to find them."""

import re

# Words that end a phrase: articles, pronouns, prepositions, conjunctions, auxiliaries, and the verbs and adverbs that
# are common in queries about videos.
_WORDS = """
    a an the this that these those some any each every his her its their our my your another other
    i you he she it we they them him us me who which what there here someone somebody something everyone people's
    in on at by to of from with without for into onto over under about around through across between behind beside
    near next out off up down after before during while as and or but if then than so not no
    is are was were be been being am has have had do does did can could will would may might must should
    moves move moving travels appears appear appearing stays stands stand standing sits sit sitting talks talk talking
    speaks speak says say see sees seen shows show showing walks walk walking runs running holds hold holding
    takes take taking puts put putting opens open opening closes closing turns turn turning goes go going
    looks look looking eats eating drinks drinking plays playing gets get getting makes make making uses using wears
    wearing cooks cooking drives driving still together again very only just first left right
"""
_BETWEEN = frozenset(_WORDS.split())


def items_of(query: str) -> list[str]:
    """Return phrases of a query that name things, in order, lower case, each once.

    Runs of words between function words and common verbs; a rule of thumb that needs no model. What it returns is one
    line of the prompt, a hint rather than a condition.
    """
    found: list[str] = []
    run: list[str] = []
    for word in [*re.findall(r"[\w'-]+|[^\w\s]", query.lower()), "."]:
        if word in _BETWEEN or not re.search(r"\w", word):
            if run and " ".join(run) not in found:
                found.append(" ".join(run))
            run = []
        else:
            run.append(word)
    return found
