"""Writes nouns into a prompt that does not have them: "on the beach" → "a dog on the beach"."""

import re
from collections.abc import Sequence

from realcustom_jax.inputs.names import indefinite

# A prompt that begins with one of these goes on after a noun: "a dog" + "on the beach".
_CONTINUATION_WORDS = """
about above across after against along alongside amid among around as asleep at atop awake before behind below
beneath beside between by covered down dressed during facing floating for from half high hidden in inside into
made near next of off on onto out outside over past seen sitting surrounded that through to toward towards
under underneath underwater up wearing which who with within without
"""
_CONTINUATIONS = frozenset(_CONTINUATION_WORDS.split())
# Times, which end like "running".
_TIMES = frozenset({"evening", "morning", "spring"})
# Articles and other words that begin a noun: "a dog and" + "a cup on the table".
_DETERMINER_WORDS = """
a an another each every five four her his its many my no one our several six some that the their these this
those three two your
"""
_DETERMINERS = frozenset(_DETERMINER_WORDS.split()) - _CONTINUATIONS
# Beginnings of captions: what they show follows, "a photo of" + "a dog on the beach".
_FORM_WORDS = """
cartoon close-up drawing illustration image oil painting photo photograph picture portrait poster render
sketch watercolor watercolour
"""
_FORM = f"(?:{'|'.join(_FORM_WORDS.split())})"
_CAPTION = re.compile(
    rf"(\s*(?:(?:an?|the)\s+)?(?:[\w-]+\s+){{0,3}}?{_FORM}(?:\s+{_FORM})*)"
    rf"(?=\s*$|\s*[,.;:]|\s+(?:{'|'.join(sorted(_CONTINUATIONS))})\b)(\s+of\b)?\s*",
    re.IGNORECASE,
)


def with_nouns(prompt: str, nouns: Sequence[str]) -> str:
    """Write nouns into a prompt, each with its article, as the first things that it shows.

    "on the beach" → "a dog on the beach"; "A photo in the snow" → "A photo of a dog in the snow"; "a cup on a
    table" → "a dog and a cup on a table"; "beach, sunset" → "a dog, beach, sunset".

    Args:
      prompt: the prompt.
      nouns: one or more nouns.
    """
    things = " and ".join(f"{indefinite(noun)}{noun}" for noun in nouns)
    caption = _CAPTION.match(prompt)
    if caption:
        # "a photo of the beach" and "a photo on the beach"; "watercolour of the beach" too.
        head = caption[1] + (caption[2] or " of")
        return f"{head} {_joined(things, prompt[caption.end() :].rstrip())}"
    capital = prompt.lstrip()[:1].isupper()
    text = _joined(things, prompt.strip())
    return text[:1].upper() + text[1:] if capital else text


def _joined(things: str, rest: str) -> str:
    """The things, and what a prompt says of them or beside them."""
    first = re.match(r"[\w'’-]*", rest)
    word = first[0] if first else ""
    if not rest.strip():
        return things
    if not word:  # ", watercolour"
        return f"{things}{rest}" if rest[0] in ",.;:" else f"{things} {rest}"
    lower = word.lower()
    goes_on = lower in _CONTINUATIONS or (lower.endswith("ing") and lower not in _TIMES)
    # Words in capitals, and names, stay as they are.
    rest = lower + rest[len(word) :] if word.istitle() and (goes_on or lower in _DETERMINERS) else rest
    if goes_on:
        return f"{things} {rest}"
    return f"{things} and {rest}" if lower in _DETERMINERS else f"{things}, {rest}"
