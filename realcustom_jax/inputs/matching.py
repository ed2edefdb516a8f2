"""Finds the words of a prompt that a reference image shows (for `Subject.words` "auto").

The functions are pure. A `Matcher` compares images with texts, with a model of its own choice.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realcustom_jax.inputs.nouns import NOUNS

# A smaller vocabulary cannot reveal a wrong choice.
FEWEST_NOUNS = 8

# Words that do not name a thing: articles, prepositions, pronouns, auxiliary verbs, and words that begin
# captions.
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


@dataclasses.dataclass(frozen=True)
class Rules:
    """When a word fits an image.

    Attributes:
      margin: the best word of the vocabulary may be better by this many logits than a word of the prompt. So
        "dog" in the prompt is accepted for an image that fits "puppy" best.
      sure: least probability of a word that is not in the prompt, among the vocabulary and "none of it".
    """

    margin: float
    sure: float


class Matcher(Protocol):
    """A model that scores how well images and phrases fit."""

    @property
    def rules(self) -> Rules:
        """When a word fits."""
        ...

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """Cosine similarity × scale.

        Args:
          images: uint8 (H, W, 3), each of any size.
          phrases: nouns such as "dog" or "alarm clock", without a sentence around them.

        Returns:
          float (images, phrases).
        """
        ...

    def none(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Logits (images,) of "nothing of the vocabulary"; −inf if it cannot tell."""
        ...

    def vocabulary(self) -> list[str]:
        """The nouns that it knows: things that an image may show and the prompt does not name."""
        ...


def candidates(prompt: str) -> list[str]:
    """Content words of the prompt, and pairs of adjacent content words; lower case, without duplicates."""
    phrases: dict[str, None] = {}  # a dict, because a set does not keep the order
    # Split at punctuation: "a dog, cat" does not contain the phrase "dog cat".
    for part in re.split(r"[^\w\s'’-]+", prompt.lower()):
        previous = None
        for word in re.findall(r"\w+(?:['’-]\w+)*", part):
            word = None if word in FUNCTION_WORDS or not re.search(r"[^\W\d]", word) else word
            if word:
                phrases[word] = None
                if previous:
                    phrases[f"{previous} {word}"] = None
            previous = word
    return list(phrases)


def vocabulary(is_one_token: Sequence[bool], nouns: Sequence[str] = NOUNS) -> list[str]:
    """The nouns that are one token of a model's tokenizer; all nouns if these are fewer than `FEWEST_NOUNS`.

    Args:
      is_one_token: for each noun, whether it is one token.
      nouns: the nouns.
    """
    # The toybox spells words that it was not trained on with several tokens.
    known = [noun for noun, one in zip(nouns, is_one_token, strict=True) if one]
    return known if len(known) >= FEWEST_NOUNS else list(nouns)


def choose_words(
    phrases: Sequence[str],
    logits: np.ndarray,
    scores: "Scores",
    rules: Rules,
    used: Sequence[str] = (),
) -> list[str | None]:
    """Choose words of the prompt for each reference image of one request.

    The choice is greedy: the pair of image and phrase with the best logit first, then the best remaining
    pair. Images get different words, unless the only phrase that fits is taken.

    Args:
      phrases: `candidates` of the prompt.
      logits: (images, phrases).
      scores: of the vocabulary.
      rules: when a phrase fits.
      used: words of the request's other subjects.

    Returns:
      The phrase of the prompt for each image; None if none fits: the best word of the vocabulary, or that
      nothing of it fits, is more than `rules.margin` logits better.
    """
    choices: dict[int, str] = {}
    taken = [set(words.lower().split()) for words in used]
    fits = logits >= scores.best()[:, None] - rules.margin  # (images, phrases)
    while True:
        # A phrase is free if it shares no word with a taken one: "red dog" is not free beside "dog".
        free = [k for k, phrase in enumerate(phrases) if not any(set(phrase.split()) & t for t in taken)]
        left = [i for i in range(len(logits)) if i not in choices and fits[i].any()]
        if not left:
            return [choices.get(i) for i in range(len(logits))]
        pairs = [(logits[i, k], i, k) for i in left for k in free if fits[i, k]]
        # If no free phrase fits, images may share a phrase.
        shared = [(logits[i, k], i, k) for i in left for k in range(len(phrases)) if fits[i, k]]
        _, i, k = max(pairs or shared)
        choices[i] = phrases[k]
        taken.append(set(phrases[k].split()))


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well the vocabulary fits each image.

    Attributes:
      nouns: the vocabulary.
      logits: (images, nouns).
      none: (images,) logit of "none of them"; −inf for a matcher that cannot tell.
    """

    nouns: Sequence[str]
    logits: np.ndarray
    none: np.ndarray

    def best(self) -> np.ndarray:
        """The best logit (images,) of the vocabulary and "none of them"."""
        return np.maximum(self.logits.max(axis=1), self.none)

    def sure_noun(self, image: int, sure: float) -> str | None:
        """The best noun for an image, if its probability is at least `sure`; else None."""
        all_logits = np.append(self.logits[image], self.none[image])
        weights = np.exp(all_logits - all_logits.max())
        best = int(self.logits[image].argmax())
        return self.nouns[best] if weights[best] / weights.sum() >= sure else None
