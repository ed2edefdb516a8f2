"""Finds the words of a prompt that a reference image shows (for `Subject.words` "auto").

The functions are pure. A `Matcher` compares images with texts, with a model of its own choice.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.nouns import NOUNS

# The best word of the vocabulary may be better by this many logits. So "dog" in the prompt is accepted for an
# image that fits "puppy" best.
MARGIN = 2.0
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


class Matcher(Protocol):
    """A model that scores how well images and phrases fit."""

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        """Cosine similarity × scale.

        Args:
          images: uint8 (H, W, 3), each of any size.
          phrases: nouns such as "dog" or "alarm clock", without a sentence around them.

        Returns:
          float (images, phrases).
        """
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
    prompt: str,
    phrases: Sequence[str],
    logits: np.ndarray,
    nouns: Sequence[str],
    noun_logits: np.ndarray,
    used: Sequence[str] = (),
) -> list[str]:
    """Choose words for each reference image of one request.

    The choice is greedy: the pair of image and phrase with the best logit first, then the best remaining
    pair. Images get different words, unless the only phrase that fits is taken.

    Args:
      prompt: prompt of the request, for errors.
      phrases: `candidates` of the prompt.
      logits: (images, phrases).
      nouns: the vocabulary.
      noun_logits: (images, nouns).
      used: words of the request's other subjects.

    Returns:
      The phrase of the prompt for each image.

    Raises:
      UserError: if no phrase fits an image: the best word of the vocabulary is more than `MARGIN` logits
        better than the best phrase.
    """
    if not phrases:
        raise UserError(
            f"the prompt '{prompt}' has no word that a reference image could show; give its words"
        )
    choices: dict[int, str] = {}
    taken = [set(words.lower().split()) for words in used]
    best_noun = noun_logits.argmax(axis=1)
    thresholds = noun_logits.max(axis=1) - MARGIN
    while len(choices) < len(logits):
        open_images = [i for i in range(len(logits)) if i not in choices]
        # A phrase is free if it shares no word with a taken one: "red dog" is not free beside "dog".
        free = [k for k, phrase in enumerate(phrases) if not any(set(phrase.split()) & t for t in taken)]
        logit, i, k = _best_pair(logits, thresholds, open_images, free)
        rival = nouns[int(best_noun[i])]
        if logit < thresholds[i]:
            raise UserError(
                f"none of the words of the prompt '{prompt}' matches the reference image well: the best is "
                f"'{phrases[k]}', but it looks like '{rival}'; write that into the prompt or give the words"
            )
        choices[i] = phrases[k]
        taken.append(set(phrases[k].split()))
    return [choices[i] for i in range(len(logits))]


def _best_pair(
    logits: np.ndarray, thresholds: np.ndarray, images: Sequence[int], phrases: Sequence[int]
) -> tuple[float, int, int]:
    """The pair (logit, image, phrase) with the best logit.

    Args:
      logits: (images, phrases).
      thresholds: (images,) the minimum logit of a phrase that fits the image.
      images, phrases: indices of the images and phrases to choose from.
    """
    pairs = [(logits[i, k], i, k) for i in images for k in phrases if logits[i, k] >= thresholds[i]]
    # If no free phrase fits, images may share a phrase.
    return max(pairs or [(logits[i, k], i, k) for i in images for k in range(logits.shape[1])])
