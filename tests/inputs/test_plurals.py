"""Singular and plural, by rule and by table."""

import pytest

from realcustom_jax.inputs.plurals import noun_forms

PAIRS = (
    "dog dogs", "bus buses", "fox foxes", "church churches", "dish dishes", "glass glasses", "quiz quizzes",
    "butterfly butterflies", "toy toys", "wolf wolves", "knife knives", "giraffe giraffes", "cliff cliffs",
    "roof roofs", "potato potatoes", "piano pianos", "horse horses", "cookie cookies", "bee bees",
    "man men", "snowman snowmen", "woman women", "child children", "grandchild grandchildren", "mouse mice",
    "goose geese", "foot feet", "tooth teeth", "ox oxen", "person people", "human humans",
    "mongoose mongooses", "monkey monkeys", "teapot teapots",
)  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS)
def test_each_finds_the_other(pair):
    singular, plural = pair.split()
    assert {singular, plural} <= noun_forms(singular)
    assert {singular, plural} <= noun_forms(plural)


@pytest.mark.parametrize("pair", ["glas glass", "new news", "man mans", "dog doge", "dres dress", "cat dog"])
def test_others_do_not(pair):
    one, other = pair.split()
    assert other not in noun_forms(one) and one not in noun_forms(other)


def test_words_without_a_plural_of_their_own():
    assert noun_forms("sheep") == {"sheep"}


def test_case_is_kept():
    assert {"Dog", "Dogs"} <= noun_forms("Dog") and {"DOG", "DOGS"} <= noun_forms("DOG")
    assert "dogs" not in noun_forms("Dog")
