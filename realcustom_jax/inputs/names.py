"""Writes the words of characters into prompts that use their names: "Mika's hat" → "a cat's hat".

The first mention of a character gets an indefinite article, later ones "the"; a determiner that is there
stays. A second character of the same word is "another cat", then "the other cat".
"""

import dataclasses
import functools
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.rules import quoted
from realcustom_jax.inputs.characters import Character
from realcustom_jax.inputs.nouns import NOUNS

_DETERMINERS = (
    "a|an|the|this|that|these|those|my|your|his|her|its|our|their|some|any|no|each|every|another|one"
)
# Words between a determiner and a name, "the brave little Mika". Without a determiner, the article comes
# before them: "brave Mika" → "a brave cat".
_ADJECTIVES = """
angry baby beautiful big black blue brave bright brown busy calm clever cold crazy curious cute dancing
dark dear delighted dirty dreaming excited fat flying friendly funny furious fuzzy gentle giant gigantic
golden good gray great green grey grumpy happy hungry jolly joyful jumping kind large laughing lazy
little lonely lost loud lovely lucky magic mighty nervous nice old orange pink playful poor proud purple
quick quiet red running sad scared shy silly silver sleeping sleepy small smart smiling snowy soft strong
surprised sweet swimming tall thin tiny tired ugly unhappy warm wet white wild wise worried yellow young
"""
# The end of the text before a name: a determiner or a possessive, and adjectives; each may be absent.
_LEAD = re.compile(
    rf"((?<![\w-])(?:{_DETERMINERS})\s+|(?<!\w)\w*['’]s\s+)?"
    rf"((?<![\w-])(?:(?:{'|'.join(_ADJECTIVES.split())})\s+)*)$",
    re.IGNORECASE,
)
# Articles of the second, third, … character of one word: at its first mention, and later.
_ORDINALS = ("third", "fourth", "fifth", "sixth", "seventh", "eighth")
# How far before a name its determiner may begin, in characters: longer leads would take long to search.
_LONGEST_LEAD = 200
# Nouns without a singular, which take no indefinite article.
_PAIRS = frozenset({"glasses", "headphones", "jeans", "scissors", "shorts", "sunglasses", "trousers"})
# Singulars that look like plurals, beside those that end in "ss", "us" or "is".
_SINGULARS = frozenset({"atlas", "canvas", "christmas", "gas", "lens", "rhinoceros"})
# Where the noun of a phrase ends: "dog with the pink hats" is about a dog.
_AFTER_NOUN = re.compile(
    r"\s(?:at|by|from|holding|in|near|of|on|that|under|wearing|which|who|with|without)\s", re.IGNORECASE
)
# Names that are also ordinary words, beside nouns and adjectives. In small letters, they are the word.
_WORDS_AND_NAMES = """
amber angel art ash aurora autumn bill brook coral dawn faith fern flora frank gene grace grant hazel heather
holly hope hunter ivy jade joy june lily mark may melody mercy misty olive pat pearl penny pepper poppy prince
princess rain ray river rob rocky ruby rusty sage sandy scarlet shadow sky snow spot spring star stormy summer
sunny sunshine teddy tom velvet violet will willow winter
"""


@dataclasses.dataclass(frozen=True)
class Written:
    """A prompt in which words stand for the names of characters.

    Attributes:
      prompt: the prompt for the model.
      words: {name of each mentioned character: its target words in the prompt, such as ("cat#2",)}, in the
        order of their first mention.
    """

    prompt: str
    words: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class _Mention:
    """A name in a prompt, at [start, stop)."""

    start: int
    stop: int
    character: Character


# A text, or a character whose name stands there.
_Piece = str | Character


def write_words(
    prompt: str, characters: Sequence[Character], wishes: Mapping[str, str] | None = None, ending: str = ""
) -> Written:
    """Replace the names in a prompt by words.

    A name matches as a whole word, in any case. If a prompt holds a name as it is written, or the name is
    also an ordinary word, then only this and capitals match: "Rose in a rose garden" has one Rose, and "a
    sunny day" has no Sunny.

    Args:
      prompt: a prompt with names.
      characters: the characters of the story, with different names.
      wishes: {name: text after the first mention}, such as {"Mika": "wearing Bolt's scarf"}.
      ending: text at the end of the prompt, after a comma, in which names stay.

    Raises:
      UserError: for a wish of a character that the prompt does not name, or names first as a possessive.
    """
    prompt = unicodedata.normalize("NFC", prompt)
    pieces = _with_wishes(prompt, _pieces(prompt, characters), characters, wishes or {})
    cast = [piece for piece in pieces if isinstance(piece, Character)]
    ranks = _ranks(cast)
    text, before = "", ""  # what is written, and what follows the last mention
    places: dict[str, list[int]] = {}  # {name: where its words begin in the new text}
    for piece in pieces:
        if isinstance(piece, str):
            before += piece
            continue
        own = places.setdefault(piece.name, [])
        text += _with_article(before, piece.word, ranks[piece.name], first=not own)
        own.append(len(text))
        text, before = text + piece.word, ""
    text += before
    if ending:
        text = f"{text.rstrip(' ,')}, {ending}"
    words = {character.name: character.word for character in cast}
    return Written(text, {name: _numbered(text, words[name], own) for name, own in places.items()})


def _with_wishes(
    prompt: str, pieces: Sequence[_Piece], characters: Sequence[Character], wishes: Mapping[str, str]
) -> list[_Piece]:
    """The pieces of a prompt, with each wish after the first mention of its character."""
    left = {name: " ".join(text.split()) for name, text in wishes.items() if text.strip()}
    result: list[_Piece] = []
    for i, piece in enumerate(pieces):
        result.append(piece)
        if isinstance(piece, str) or piece.name not in left:
            continue
        wish = left.pop(piece.name)
        after = pieces[i + 1]
        if isinstance(after, str) and after[:1] in ("'", "’"):
            raise UserError(
                f"the prompt {quoted(prompt)} first names {piece.name} as a possessive, where the wish "
                f"{quoted(wish)} has no place: name {piece.name} before that"
            )
        result += [" ", *_pieces(unicodedata.normalize("NFC", wish), characters)]
    for name, wish in left.items():
        raise UserError(
            f"the wish {quoted(wish)} is for {name}, whom the prompt {quoted(prompt)} does not name"
        )
    return result


def _pieces(text: str, characters: Sequence[Character]) -> list[_Piece]:
    """A text divided at its names: text, character, text, …, text; texts may be empty."""
    pieces: list[_Piece] = []
    end = 0
    for mention in _find_mentions(text, characters):
        pieces += [text[end : mention.start], mention.character]
        end = mention.stop
    return [*pieces, text[end:]]


def _find_mentions(prompt: str, characters: Sequence[Character]) -> list[_Mention]:
    """The names in a prompt, in order, without overlaps."""
    found: list[_Mention] = []
    # Longer names first: "Mika Junior" is not Mika.
    for character in sorted(characters, key=lambda one: -len(one.name)):
        for start, stop in _spans(prompt, character.name):
            if all(stop <= other.start or start >= other.stop for other in found):
                found.append(_Mention(start, stop, character))
    return sorted(found, key=lambda mention: mention.start)


def _spans(prompt: str, name: str) -> list[tuple[int, int]]:
    """Where a name is in a prompt."""

    def spans(name: str, flags: int = 0) -> list[tuple[int, int]]:
        spaced = r"\s+".join(map(re.escape, name.split()))
        # A hyphen joins words: "Mika-like" is another word.
        return [match.span() for match in re.finditer(rf"(?<![\w-]){spaced}(?![\w-])", prompt, flags)]

    exact = sorted({*spans(name), *spans(name.upper())})
    return exact if exact or _is_ordinary(name) else spans(name, re.IGNORECASE)


@functools.cache
def _is_ordinary(name: str) -> bool:
    """Whether a name is also an ordinary word, or a single letter."""
    word = name.lower()
    others = (*NOUNS, *_ADJECTIVES.split(), *_DETERMINERS.split("|"), *_WORDS_AND_NAMES.split())
    return len(word) == 1 or word in others


def _ranks(cast: Sequence[Character]) -> dict[str, int]:
    """{name: 1 for the first character of its word in the prompt, 2 for the second, …}.

    Args:
      cast: the mentioned characters, in order.
    """
    ranks: dict[str, int] = {}
    counts: dict[str, int] = {}
    for character in cast:
        name, word = character.name, character.word.lower()
        if name not in ranks:
            counts[word] = ranks[name] = counts.get(word, 0) + 1
    return ranks


def _with_article(before: str, word: str, rank: int, first: bool) -> str:
    """The text before a mention, with the article of its word.

    Args:
      before: the text between the last mention and this one.
      word: word of the character.
      rank: see `_ranks`.
      first: whether this is the character's first mention.
    """
    lead = _LEAD.search(before, max(0, len(before) - _LONGEST_LEAD))
    assert lead is not None  # both groups may be absent
    determiner, adjectives = lead.group(1) or "", lead.group(2)
    if determiner and determiner.strip().lower() not in ("a", "an"):
        return before
    ordinal = _ORDINALS[min(rank, 8) - 3] if rank > 2 else ""
    if not first:
        article = "the " + (f"{ordinal} " if ordinal else "other " if rank == 2 else "")
    elif rank == 2 and not determiner:
        article = "another "
    else:
        article = indefinite(f"{ordinal} {adjectives} {word}")
    return f"{before[: lead.start()]}{article}{adjectives}"


@functools.cache
def _engine() -> Any:
    import inflect  # takes a second to import, so only where it is used

    return inflect.engine()


def indefinite(noun: str) -> str:
    """The indefinite article of a noun: "a ", "an ", or "" before a plural; with an ordinal, "a third "."""
    head = _AFTER_NOUN.split(noun.strip())[0].split()
    if _is_plural(head[-1].lower()):
        return ""
    article = _engine().a(" ".join(head)).split()[0]
    return f"{article} {head[0]} " if head[1:] and head[0] in _ORDINALS else f"{article} "


def _is_plural(noun: str) -> bool:
    """Whether a noun in small letters is a plural: "cats", but not "octopus" or "sheep"."""
    if noun in _PAIRS:
        return True
    singular = _engine().singular_noun(noun)
    if singular in NOUNS:
        return singular != noun
    looks_singular = noun in _SINGULARS or noun.endswith(("ss", "us", "is"))
    return bool(singular) and singular != noun and not looks_singular


def _numbered(text: str, word: str, places: Sequence[int]) -> tuple[str, ...]:
    """The target words at some places: the word alone, or numbered if it is also elsewhere in the text."""
    spaced = r"\s+".join(map(re.escape, word.split()))
    # Counted as `target_words.find_phrase` counts.
    starts = [m.start() for m in re.finditer(rf"(?<!\w){spaced}(?!\w)", text, re.IGNORECASE)]
    if starts == list(places):
        return (word,)
    return tuple(f"{word}#{starts.index(place) + 1}" for place in places)
