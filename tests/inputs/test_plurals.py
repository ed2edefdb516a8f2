"""Singular and plural."""

import subprocess
import sys

import pytest

from realcustom_jax.inputs.nouns import NOUNS
from realcustom_jax.inputs.plurals import noun_forms

PAIRS = (
    "dog dogs", "bus buses", "fox foxes", "church churches", "dish dishes", "glass glasses", "quiz quizzes",
    "butterfly butterflies", "toy toys", "wolf wolves", "knife knives", "giraffe giraffes", "cliff cliffs",
    "roof roofs", "potato potatoes", "piano pianos", "horse horses", "cookie cookies", "bee bees",
    "man men", "snowman snowmen", "woman women", "child children", "grandchild grandchildren", "mouse mice",
    "goose geese", "foot feet", "tooth teeth", "ox oxen", "person people", "human humans",
    "mongoose mongooses", "monkey monkeys", "teapot teapots", "cactus cactuses", "cactus cacti",
    "fungus fungi", "larva larvae", "axis axes", "axe axes", "hoof hooves", "hoof hoofs", "scarf scarves",
    "fish fish", "fish fishes", "goldfish goldfishes", "shrimp shrimps", "thief thieves", "octopus octopuses",
    "die dice", "louse lice", "dormouse dormice", "german germans", "shaman shamans", "canvas canvases",
    "lens lenses", "waltz waltzes", "selfie selfies", "halo haloes", "halo halos", "scissors scissors",
    "aircraft aircraft", "criterion criteria", "crisis crises", "T-shirt T-shirts",
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


@pytest.mark.parametrize("noun", ["", "'s", "1", "#2", "…", "—", "お", "a" * 300, "ss", "s"])
def test_what_is_no_noun_is_at_least_itself(noun):
    assert noun in noun_forms(noun)


def test_forms_are_of_each_other():
    for noun in NOUNS:
        word = noun.split()[-1]
        assert all(word in noun_forms(form) for form in noun_forms(word)), word


def test_inflect_is_imported_only_where_plurals_count():
    """It takes a second, which loader workers need not wait for; and JAX is not imported at all."""
    code = "import realcustom_jax.inputs.plurals, sys; assert not {'inflect', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_case_is_kept():
    assert {"Dog", "Dogs"} <= noun_forms("Dog") and {"DOG", "DOGS"} <= noun_forms("DOG")
    assert "dogs" not in noun_forms("Dog")
