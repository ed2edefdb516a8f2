"""English nouns in singular and plural, by inflect: "dogs" is found for "dog", and "dog" for "dogs"."""

import functools
import re
from typing import Any

# Corrections of inflect: patterns of a noun and its plurals, "modern|classical".
_CORRECTED = {
    "(.*)child": "$1children",
    "(.*)fish": "$1fishes|$1fish",
    "(.*)thief": "$1thieves",
    "cow": "cows",
    "german": "germans",
    "larva": "larvas|larvae",
    "shrimp": "shrimps|shrimp",
    "waltz": "waltzes",
}
# Words that look like a plural but are not.
_NO_PLURALS = frozenset({"news", "series", "species"})
# (ending of the plural, ending of the singular). inflect finds few singulars of classical plurals itself.
_ENDINGS = (
    ("children", "child"), ("men", "man"), ("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", "is"),
    ("es", ""), ("s", ""), ("i", "us"), ("i", "o"), ("ae", "a"), ("a", "um"), ("a", "on"), ("odes", "us"),
)  # fmt: skip


def noun_forms(noun: str) -> frozenset[str]:
    """Forms of a noun: itself, its plurals, and its singulars if it is a plural; in the same letter case.

    All spellings are included: "cactus" gives "cactuses" and "cacti". The relation is symmetric: if a is a
    form of b, then b is a form of a.
    """
    word = noun.lower()
    singulars = {singular for singular in _possible_singulars(word) if word in _plurals(singular)}
    return frozenset(_cased_like(noun, form) for form in {word, *_plurals(word), *singulars})


@functools.cache
def _engines() -> tuple[Any, Any]:
    """inflect's engines for modern and classical plurals. Its import takes over a second, so it is here."""
    import inflect

    engines = inflect.engine(), inflect.engine()
    for engine in engines:
        for noun, plurals in _CORRECTED.items():
            engine.defnoun(noun, plurals)
    engines[1].classical(all=True)
    return engines


@functools.cache
def _plurals(word: str) -> frozenset[str]:
    if not re.fullmatch(r"[^\W\d_]+", word):
        return frozenset({f"{word}s"})  # not a word, so inflect cannot know it
    plurals = {str(engine.plural_noun(word)) for engine in _engines()}
    if word.endswith("s") and not word.endswith("ss"):  # not "glas", "glass"
        plurals = {plural if plural != f"{word}s" else f"{word}es" for plural in plurals}
    if word.endswith("o"):
        plurals |= {f"{word}s", f"{word}es"}
    if word.endswith("f") and not word.endswith("ff"):
        plurals |= {f"{word}s", f"{word[:-1]}ves"}
    return frozenset(plural for plural in plurals if plural == word or plural not in _NO_PLURALS)


def _possible_singulars(word: str) -> set[str]:
    """Candidates for the singular of a plural; some are not words."""
    if not re.fullmatch(r"[^\W\d_]+", word):
        return {word[:-1]} if word[-1:] == "s" else set()
    singulars = {str(singular) for engine in _engines() if (singular := engine.singular_noun(word))}
    for plural, singular in _ENDINGS:
        if word.endswith(plural) and len(word) > len(plural) + 1:
            singulars.add(word.removesuffix(plural) + singular)
    return singulars


def _cased_like(model: str, word: str) -> str:
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
