"""Words "auto": chosen from the prompt, or added to it, or asked for."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.inputs.auto_words import find_words
from realcustom_jax.inputs.matching import Rules

NOUNS = ("cat", "dog", "boat")


@dataclasses.dataclass
class ByColour:
    """A matcher that reads the word off the first pixel: its red is the index of the noun, 9 is none."""

    doubt: float = 0.0  # logits by which the right word is worse

    @property
    def rules(self) -> Rules:
        return Rules(margin=1.0, sure=0.8)

    def logits(self, images: Sequence[np.ndarray], phrases: Sequence[str]) -> np.ndarray:
        return np.array([[self._logit(image, phrase) for phrase in phrases] for image in images])

    def none(self, images: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([5.0 if image[0, 0, 0] == 9 else 0.0 for image in images])

    def vocabulary(self) -> list[str]:
        return list(NOUNS)

    def _logit(self, image: np.ndarray, phrase: str) -> float:
        index = int(image[0, 0, 0])
        return 5.0 - self.doubt if index < len(NOUNS) and phrase == NOUNS[index] else 0.0


def subject(index: int, words="auto") -> rc.Subject:
    return rc.Subject(np.full((4, 4, 3), index, np.uint8), words)


def found(prompt: str, *subjects: rc.Subject, matcher=None):
    prompt, subjects = find_words(prompt, subjects, matcher or ByColour())
    return prompt, [one.words for one in subjects]


def test_word_of_the_prompt_is_chosen():
    assert found("A Dog and a cat", subject(1)) == ("A Dog and a cat", ["dog"])
    assert found("a dog and a cat", subject(1), subject(0)) == ("a dog and a cat", ["dog", "cat"])


def test_missing_word_is_written_into_the_prompt():
    assert found("on the beach", subject(1)) == ("a dog on the beach", ["dog"])
    assert found("on the beach", subject(1), subject(0)) == ("a dog and a cat on the beach", ["dog", "cat"])
    assert found("a cat in the snow", subject(0), subject(2)) == (
        "a boat and a cat in the snow",
        ["cat", "boat"],
    )
    assert found("a cat in the snow", subject(1, "cat"), subject(2))[1] == ["cat", "boat"]


def test_subject_that_nothing_fits_is_asked_for_and_no_word_is_suggested():
    for prompt in ("on the beach", "a cat on the beach"):
        with pytest.raises(rc.UserError, match="it is not clear what the reference image shows") as error:
            found(prompt, subject(9))
        assert not any(f"'{noun}'" in str(error.value) for noun in NOUNS)
    with pytest.raises(rc.UserError, match="reference image of subject 2"):
        found("a cat", subject(0), subject(9))


def test_uncertain_word_is_asked_for():
    """Logits 1.3, 0, 0 and 0 give the best word 0.55 of the probability, less than 0.8."""
    with pytest.raises(rc.UserError, match="not clear"):
        found("on the beach", subject(1), matcher=ByColour(doubt=3.7))
    assert found("a dog on the beach", subject(1), matcher=ByColour(doubt=3.7))[1] == ["dog"]


def test_second_subject_of_one_word_is_asked_for():
    with pytest.raises(rc.UserError, match="looks like 'dog', as another subject does"):
        found("on the beach", subject(1), subject(1))


def test_result_tells_the_prompt_and_words_that_were_found(micro_pipe):
    pipe = micro_pipe.replace(matcher=ByColour())
    out = rc.sample(pipe, "on the beach", [subject(1)], steps=1, mask_steps=1, progress=False)
    assert out.prompts == ["a dog on the beach"] and out.words == [[("dog",)]]
    given = rc.sample(pipe, out.prompts[0], [subject(1, "dog")], steps=1, mask_steps=1, progress=False)
    np.testing.assert_array_equal(out.images, given.images)
