"""English nouns in the singular and the plural: enough to find "dogs" for "dog", and the other way round."""

_IRREGULAR = {
    "child": "children",
    "die": "dice",
    "foot": "feet",
    "goose": "geese",
    "louse": "lice",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "quiz": "quizzes",
    "tooth": "teeth",
    "woman": "women",
}
_ENDINGS = ("man", "woman", "child", "foot", "tooth", "goose", "mouse")  # "snowman", "grandchild", "dormouse"
_SAME = frozenset({"aircraft", "deer", "moose", "news", "series", "sheep", "shrimp", "species", "swine"})
# These end in the letters of an irregular word and are regular: humans, not humen.
_REGULAR = frozenset({"caiman", "german", "human", "mongoose", "ottoman", "shaman", "talisman"})


def noun_forms(noun: str) -> frozenset[str]:
    """The noun, its plurals, and the singulars that it is a plural of; the case of its letters is kept.

    Both spellings count where the rules can't tell: "roof" gives "roofs" and "rooves". If a is a form of b, b
    is one of a.
    """
    word = noun.lower()
    forms = {word, *_plurals(word), *(s for s in _possible_singulars(word) if word in _plurals(s))}
    if word not in _SAME:
        forms -= _SAME  # "news" is no plural of "new"
    return frozenset(_cased_like(noun, form) for form in forms)


def _plurals(word: str) -> set[str]:
    if word in _SAME:
        return {word}
    if word in _IRREGULAR:
        return {_IRREGULAR[word]}
    for ending in _ENDINGS:
        if word.endswith(ending) and word not in _REGULAR:
            return {word.removesuffix(ending) + _IRREGULAR[ending]}
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return {word[:-1] + "ies"}
    if word.endswith("fe"):
        return {word[:-2] + "ves", word + "s"}
    if word.endswith("f") and not word.endswith("ff"):
        return {word[:-1] + "ves", word + "s"}
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return {word + "es"}
    if word.endswith("o"):
        return {word + "s", word + "es"}
    return {word + "s"}


def _possible_singulars(word: str) -> set[str]:
    """All that a plural may come from; some are no words."""
    if word in _SAME:
        return set()
    found = {singular for singular, plural in _IRREGULAR.items() if plural == word}
    for ending in _ENDINGS:
        if word.endswith(_IRREGULAR[ending]):
            found.add(word.removesuffix(_IRREGULAR[ending]) + ending)
    for plural, singulars in (("ies", ("y",)), ("ves", ("f", "fe")), ("es", ("",)), ("s", ("",))):
        if word.endswith(plural) and len(word) > len(plural) + 1:
            found |= {word.removesuffix(plural) + singular for singular in singulars}
    return found


def _cased_like(model: str, word: str) -> str:
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word
