"""Automatic target words: candidate phrases, the choice among them, and errors."""

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.matching import FUNCTION_WORDS, candidates, choose_words, vocabulary
from realcustom_jax.inputs.nouns import NOUNS


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a bird on the beach", "bird, beach"),
        ("A photo of an Alarm Clock", "alarm, clock, alarm clock"),
        ("a red sports car", "red, sports, red sports, car, sports car"),
        ("a cat, dog and  cat", "cat, dog"),  # no phrase over a comma; each once
        ("two-tone robot in 2050", "two-tone, robot, two-tone robot"),
        ("the dog's bone", "dog's, bone, dog's bone"),
        ("in the and of", ""),
        ("", ""),
    ],
)
def test_candidates_are_content_words_and_phrases(prompt, expected):
    assert ", ".join(candidates(prompt)) == expected


def test_nouns_are_unique_lowercase_words():
    assert 200 <= len(NOUNS) == len(set(NOUNS))
    assert all(noun.isalpha() and noun.islower() for noun in NOUNS)
    assert not set(NOUNS) & FUNCTION_WORDS


def test_vocabulary_keeps_nouns_known_to_tokenizer():
    nouns = [f"noun{i}" for i in range(20)]
    assert vocabulary([i < 8 for i in range(20)], nouns) == nouns[:8]
    assert vocabulary([i < 7 for i in range(20)], nouns) == nouns  # too few known nouns to filter by


def choose(logits, nouns=(0.0, 0.0), used=(), phrases=("cat", "dog", "beach")):
    logits = np.atleast_2d(np.asarray(logits, float))
    noun_logits = np.broadcast_to(np.asarray(nouns, float), (len(logits), 2))
    return choose_words("the prompt", phrases, logits, ["teapot", "boat"], noun_logits, used)


def test_best_phrase_is_chosen():
    assert choose([1, 3, 2]) == ["dog"]


def test_vocabulary_word_over_two_logits_better_raises():
    assert choose([1, 3, 2], nouns=(0, 5.0)) == ["dog"]
    with pytest.raises(UserError) as error:
        choose([1, 3, 2], nouns=(0, 5.1))
    assert str(error.value) == (
        "none of the words of the prompt 'the prompt' matches the reference image well: the best is 'dog', "
        "but it looks like 'boat'; write that into the prompt or give the words"
    )


def test_several_images_get_different_words():
    """The most certain image chooses first: the second takes "dog", so the first takes its next best."""
    assert choose([[4, 5, 0], [0, 6, 0]]) == ["cat", "dog"]
    assert choose([[4, 5, 0]], used=["Dog"]) == ["cat"]
    assert choose([[4, 5, 9]], used=["dog"], phrases=("cat", "dog", "big dog")) == ["cat"]  # shares a word


def test_images_share_word_when_no_other_fits():
    assert choose([[-9, 5, -9], [-9, 6, -9]]) == ["dog", "dog"]
    assert choose([[5], [6]], phrases=("cat",)) == ["cat", "cat"]


def test_prompt_without_content_words_raises():
    with pytest.raises(UserError, match="'the prompt' has no word that a reference image could show"):
        choose(np.zeros((1, 0)), phrases=())
