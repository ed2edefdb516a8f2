"""Captions of scenes: plain prompts, descriptions of identities, and a small grammar."""

from collections.abc import Sequence

import numpy as np

from realcustom_jax.toybox.backgrounds import PHRASES, check_background
from realcustom_jax.toybox.palette import Identity, check_word

# {s} is "a cat and a dog", {p} is "on the beach". Each subject must appear once, so that its word is found.
VARIATIONS: tuple[str, ...] = (
    "a photo of {s} {p}",
    "a drawing of {s} {p}",
    "a picture of {s} {p}",
    "there is {s} {p}",
    "{p}, {s}",
)


def with_article(phrase: str) -> str:
    """Add "a" or "an", by the first letter: "an orange cat"."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def join(phrases: Sequence[str], background: str) -> str:
    """Join phrases and a background's name: "a cat and a robot on the beach"."""
    check_background(background)
    return f"{' and '.join(with_article(p) for p in phrases)} {PHRASES[background]}"


def prompt(words: Sequence[str], background: str) -> str:
    """The plain prompt: "a cat on the beach", "a cat and a robot on the beach".

    Raises:
        ValueError: a word or the background is unknown.
    """
    for word in words:
        check_word(word)
    return join(words, background)


def describe(identity: Identity) -> str:
    """The full description of an identity: "red and blue striped cat"."""
    main, second = identity.colours
    pattern = "" if identity.pattern == "plain" else f"{identity.pattern} "
    return f"{main} and {second} {pattern}{identity.word}"


def _described(rng: np.random.Generator, identity: Identity) -> str:
    """A random true description: main colour, pattern, both colours, or everything."""
    main, second = identity.colours
    # Partial descriptions too, so that each attribute also appears alone.
    options = [f"{main} {identity.word}", f"{main} and {second} {identity.word}", describe(identity)]
    if identity.pattern != "plain":
        options.append(f"{identity.pattern} {identity.word}")
    return options[int(rng.integers(len(options)))]


def sample_caption(rng: np.random.Generator, identities: Sequence[Identity], background: str) -> str:
    """A random caption: 55 % the plain prompt, 35 % with descriptions, 10 % another sentence."""
    words = [i.word for i in identities]
    # Mostly the plain prompt, because the benchmark uses it.
    kind = rng.random()
    if kind < 0.55:
        return prompt(words, background)
    if kind < 0.90:
        return join([_described(rng, i) for i in identities], background)
    subjects = " and ".join(with_article(w) for w in words)
    template = VARIATIONS[int(rng.integers(len(VARIATIONS)))]
    return template.format(s=subjects, p=PHRASES[background])
