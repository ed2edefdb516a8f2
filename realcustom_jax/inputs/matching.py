"""Which words of a prompt a reference image shows (`Subject.words` "auto").

Pure: what compares images with texts is a `Matcher`, whatever model it runs.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.nouns import NOUNS

# How much better, in logits, the vocabulary's best word may be: "puppy" for the prompt's "dog" is no mistake.
MARGIN = 2.0
# A vocabulary of fewer words could not tell a wrong choice from a right one.
FEWEST_NOUNS = 8

# Words that name no thing: articles, prepositions, pronouns, auxiliary verbs and what captions begin with.
_FUNCTION_WORDS = """
a about above across after against all along alongside also am among an and another any are around as at
atop be because been before behind being below beneath beside besides between beyond both but by can could
did do does doing down during each either every few for from had has have having he her here hers him his
how i if in inside into is it its itself just like many me more most much my near no nor not of off on one
only onto or other our out outside over past per playing please several she should sitting so some standing
such than that the their them then there these they this those through to together too toward towards under
until up upon us very was wearing were what when where which while who whose will with within without would
you your drawing image painting photo photograph picture portrait front top side middle
"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


class Matcher(Protocol):
    """Something that tells how well images and phrases fit."""

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """Cosine similarity × scale.

        Args:
          images: uint8 (H, W, 3) each, of any size.
          phrases: nouns such as "dog" or "alarm clock"; the matcher puts them into its own kind of sentence.

        Returns:
          float (images, phrases).
        """


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a reference narrows.

    Attributes:
      words: the phrase of the prompt.
      logit: how well it fits.
      rival: the vocabulary's best word, which is at most `MARGIN` logits better.
    """

    words: str
    logit: float
    rival: str


def candidates(prompt: str) -> list[str]:
    """The prompt's content words, and phrases of two that stand side by side, in lower case, each once."""
    found: dict[str, None] = {}
    # Only spaces may stand between the two words of a phrase.
    for part in re.split(r"[^\w\s'’-]+", prompt.lower()):
        previous = None
        for word in re.findall(r"\w+(?:['’-]\w+)*", part):
            word = None if word in FUNCTION_WORDS or not re.search(r"[^\W\d]", word) else word
            if word:
                found[word] = None
                if previous:
                    found[f"{previous} {word}"] = None
            previous = word
    return list(found)


def vocabulary(is_one_token: Sequence[bool], nouns: Sequence[str] = NOUNS) -> list[str]:
    """The nouns that a model's tokenizer has as one token: what it was trained on, others it only spells.

    Where fewer than `FEWEST_NOUNS` remain, all of them.
    """
    known = [noun for noun, one in zip(nouns, is_one_token, strict=True) if one]
    return known if len(known) >= FEWEST_NOUNS else list(nouns)


def choose_words(
    prompt: str,
    phrases: Sequence[str],
    logits: np.ndarray,
    nouns: Sequence[str],
    noun_logits: np.ndarray,
    used: Sequence[str] = (),
) -> list[Choice]:
    """The words of each reference image of one request.

    The best pair of an image and a phrase is taken first, then the best of what is left: different images get
    different words, unless only a word that another has fits well.

    Args:
      prompt: of the request, for errors.
      phrases: its `candidates`.
      logits: (images, phrases).
      nouns: the vocabulary.
      noun_logits: (images, nouns).
      used: words that other subjects of the request were given.

    Raises:
      UserError: where no phrase fits an image: the best word of the vocabulary is more than `MARGIN` logits
        better than the best phrase.
    """
    if not phrases:
        raise UserError(
            f"the prompt '{prompt}' has no word that a reference image could show; give its words"
        )
    choices: dict[int, Choice] = {}
    taken = [set(words.lower().split()) for words in used]
    best_noun = noun_logits.argmax(axis=1)
    while len(choices) < len(logits):
        open_images = [i for i in range(len(logits)) if i not in choices]
        free = [k for k, phrase in enumerate(phrases) if not any(set(phrase.split()) & t for t in taken)]
        pairs = [(logits[i, k], i, k) for i in open_images for k in free]
        pairs = [p for p in pairs if p[0] >= noun_logits[p[1], best_noun[p[1]]] - MARGIN]
        # Where no free word fits any open image, they may share one.
        logit, i, k = max(pairs or [(logits[i, k], i, k) for i in open_images for k in range(len(phrases))])
        rival = nouns[best_noun[i]]
        if logit < noun_logits[i, best_noun[i]] - MARGIN:
            raise UserError(
                f"none of the words of the prompt '{prompt}' matches the reference image well: the best is "
                f"'{phrases[k]}', but it looks like '{rival}'; write that into the prompt or give the words"
            )
        choices[i] = Choice(phrases[k], float(logit), rival)
        taken.append(set(phrases[k].split()))
    return [choices[i] for i in range(len(logits))]
