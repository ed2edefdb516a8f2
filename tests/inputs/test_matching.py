"""Automatic target words: candidate phrases, the choice among them, and errors."""

import numpy as np
import pytest

from realcustom_jax.inputs.matching import FUNCTION_WORDS, Rules, Scores, candidates, choose_words, vocabulary
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


def choose(logits, nouns=(0.0, 0.0), used=(), phrases=("cat", "dog", "beach"), none=-np.inf):
    logits = np.atleast_2d(np.asarray(logits, float))
    noun_logits = np.broadcast_to(np.asarray(nouns, float), (len(logits), 2))
    scores = Scores(["teapot", "boat"], noun_logits, np.full(len(logits), none))
    return choose_words(phrases, logits, scores, Rules(margin=2.0, sure=0.5), used)


def test_best_phrase_is_chosen():
    assert choose([1, 3, 2]) == ["dog"]


def test_phrase_does_not_fit_when_vocabulary_is_over_margin_better():
    assert choose([1, 3, 2], nouns=(0, 5.0)) == ["dog"]
    assert choose([1, 3, 2], nouns=(0, 5.1)) == [None]
    assert choose([1, 3, 2], none=5.0) == ["dog"]
    assert choose([1, 3, 2], none=5.1) == [None]


def test_several_images_get_different_words():
    """The most certain image chooses first: the second takes "dog", so the first takes its next best."""
    assert choose([[4, 5, 0], [0, 6, 0]]) == ["cat", "dog"]
    assert choose([[4, 5, 0]], used=["Dog"]) == ["cat"]
    assert choose([[4, 5, 9]], used=["dog"], phrases=("cat", "dog", "big dog")) == ["cat"]  # shares a word


def test_images_share_word_when_no_other_fits():
    assert choose([[-9, 5, -9], [-9, 6, -9]]) == ["dog", "dog"]
    assert choose([[5], [6]], phrases=("cat",)) == ["cat", "cat"]


def test_prompt_without_content_words_has_no_choice():
    assert choose(np.zeros((2, 0)), phrases=()) == [None, None]


def test_noun_is_sure_by_its_probability_among_vocabulary_and_none():
    """Softmax of (2, 0, 1) is (0.665, 0.090, 0.245), computed by hand."""
    scores = Scores(["teapot", "boat"], np.array([[2.0, 0.0]]), np.array([1.0]))
    assert scores.sure_noun(0, 0.66) == "teapot"
    assert scores.sure_noun(0, 0.67) is None
    assert Scores(["teapot", "boat"], np.array([[2.0, 0.0]]), np.array([3.0])).sure_noun(0, 0.5) is None
