"""Singular and plural forms of nouns."""

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
def test_singular_and_plural_match_each_other(pair):
    singular, plural = pair.split()
    assert {singular, plural} <= noun_forms(singular)
    assert {singular, plural} <= noun_forms(plural)


@pytest.mark.parametrize("pair", ["glas glass", "new news", "man mans", "dog doge", "dres dress", "cat dog"])
def test_unrelated_words_do_not_match(pair):
    one, other = pair.split()
    assert other not in noun_forms(one) and one not in noun_forms(other)


def test_invariant_plural_has_one_form():
    assert noun_forms("sheep") == {"sheep"}


@pytest.mark.parametrize("noun", ["", "'s", "1", "#2", "…", "—", "お", "a" * 300, "ss", "s"])
def test_non_noun_matches_itself(noun):
    assert noun in noun_forms(noun)


def test_noun_forms_are_symmetric():
    for noun in NOUNS:
        word = noun.split()[-1]
        assert all(word in noun_forms(form) for form in noun_forms(word)), word


def test_inflect_and_jax_are_not_imported_eagerly():
    """Importing inflect takes a second, which loader workers should not spend; they need no JAX either."""
    code = "import realcustom_jax.inputs.plurals, sys; assert not {'inflect', 'jax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_noun_forms_keep_case():
    assert {"Dog", "Dogs"} <= noun_forms("Dog") and {"DOG", "DOGS"} <= noun_forms("DOG")
    assert "dogs" not in noun_forms("Dog")
