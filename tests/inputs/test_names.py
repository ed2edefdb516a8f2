"""Names of characters in prompts become words, and the target words are exactly those."""

import time

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.characters import Character
from realcustom_jax.inputs.names import write_words
from realcustom_jax.inputs.target_words import find_phrase

IMAGE = np.zeros((8, 8, 3), np.uint8)


def cast(**words: str) -> list[Character]:
    return [Character(name.replace("_", " "), IMAGE, word) for name, word in words.items()]


TWO_CATS = cast(Mika="cat", Bolt="cat")


@pytest.mark.parametrize(
    ("characters", "prompt", "written", "words"),
    [
        (cast(Mika="cat"), "Mika on the beach", "a cat on the beach", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "Mika's hat", "a cat's hat", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "Mika’s hat", "a cat’s hat", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "MIKA in the snow", "a cat in the snow", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "mika in the snow", "a cat in the snow", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "Mikado and a Mika-like toy", "Mikado and a Mika-like toy", {}),
        (cast(Mika="cat"), "Mika sleeps, Mika dreams", "a cat sleeps, the cat dreams", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "the brave little Mika", "the brave little cat", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "brave Mika", "a brave cat", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "my old Mika", "my old cat", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "a photo of Mika", "a photo of a cat", {"Mika": ("cat",)}),
        (cast(Mika="cat"), "Mika chases a cat", "a cat chases a cat", {"Mika": ("cat#1",)}),
        (cast(Mika="cat"), "a cat chases Mika", "a cat chases a cat", {"Mika": ("cat#2",)}),
        (cast(Olaf="owl"), "a Olaf", "an owl", {"Olaf": ("owl",)}),
        (cast(Olaf="owl"), "a big Olaf", "a big owl", {"Olaf": ("owl",)}),
        (cast(Ann="umbrella"), "old Ann", "an old umbrella", {"Ann": ("umbrella",)}),
        (cast(Bo="glasses"), "Bo on a table", "glasses on a table", {"Bo": ("glasses",)}),
        (cast(Rose="cat"), "Rose in a rose garden", "a cat in a rose garden", {"Rose": ("cat",)}),
        (
            TWO_CATS, "Mika meets Bolt. Bolt waves, Mika laughs",
            "a cat meets another cat. the other cat waves, the cat laughs",
            {"Mika": ("cat#1", "cat#4"), "Bolt": ("cat#2", "cat#3")},
        ),
        (TWO_CATS, "Mika's Bolt", "a cat's cat", {"Mika": ("cat#1",), "Bolt": ("cat#2",)}),
        (
            cast(A="dog", B="dog", C="dog"), "A, B and brave C; C",
            "a dog, another dog and a third brave dog; the third dog",
            {"A": ("dog#1",), "B": ("dog#2",), "C": ("dog#3", "dog#4")},
        ),
        (
            cast(Mika="cat", Mika_Junior="dog"), "Mika Junior and Mika", "a dog and a cat",
            {"Mika Junior": ("dog",), "Mika": ("cat",)},
        ),
        (
            cast(Mika="dog with the pink hat"), "Mika at sea", "a dog with the pink hat at sea",
            {"Mika": ("dog with the pink hat",)},
        ),
        (cast(Žofie="cat"), "ŽOFIE and Z\u030cofie", "a cat and the cat", {"Žofie": ("cat",)}),
        (cast(**{"R2-D2": "robot"}), "R2-D2 (blue)", "a robot (blue)", {"R2-D2": ("robot",)}),
        (cast(Mika="cat"), "", "", {}),
        (cast(Mika="cat"), "nobody", "nobody", {}),
        (cast(Mika="c++"), "Mika+", "a c+++", {"Mika": ("c++",)}),
        (cast(Mika="octopus"), "Mika at sea", "an octopus at sea", {"Mika": ("octopus",)}),
        (cast(Mika="sheep"), "brave Mika", "a brave sheep", {"Mika": ("sheep",)}),
        (cast(Mika="glass"), "Mika", "a glass", {"Mika": ("glass",)}),
        (cast(Mika="cats"), "Mika at sea", "cats at sea", {"Mika": ("cats",)}),
        (
            cast(Mika="owl with green feathers"), "Mika at sea", "an owl with green feathers at sea",
            {"Mika": ("owl with green feathers",)},
        ),
        (cast(Sunny="cat", Bo="dog"), "Bo on a sunny day", "a dog on a sunny day", {"Bo": ("dog",)}),
        (cast(Sunny="cat"), "SUNNY on a sunny day", "a cat on a sunny day", {"Sunny": ("cat",)}),
        (cast(Will="cat", Bo="dog"), "Bo will sleep", "a dog will sleep", {"Bo": ("dog",)}),
        (cast(A="cat"), "a hat", "a hat", {}),
        (
            cast(Mika="orange", Bo="cat"), "Mika Bo", "an orange a cat", {"Mika": ("orange",), "Bo": ("cat",)}
        ),
        (cast(Mika="with a hat"), "Mika", "a with a hat", {"Mika": ("with a hat",)}),
    ],
)  # fmt: skip
def test_names_become_words(characters, prompt, written, words):
    result = write_words(prompt, characters)
    assert result.prompt == written
    assert dict(result.words) == words
    # The words name places that `Subject.words` finds.
    for phrases in result.words.values():
        for phrase in phrases:
            assert find_phrase(result.prompt, phrase)


def test_ending_keeps_its_names_and_is_no_target():
    result = write_words("Mika at sea, ", cast(Mika="cat"), ending="drawn by a cat for Mika")
    assert result.prompt == "a cat at sea, drawn by a cat for Mika"
    assert dict(result.words) == {"Mika": ("cat#1",)}
    assert write_words("Mika, ", cast(Mika="cat")).prompt == "a cat, "


@pytest.mark.parametrize("prompt", ["big " * 2400 + "x Mika", "x" * 9990 + " Mika", "'s " * 3000 + "Mika"])
def test_long_prompts_are_written_in_a_moment(prompt):
    begun = time.perf_counter()
    assert write_words(prompt, cast(Mika="cat")).words == {"Mika": ("cat",)}
    assert time.perf_counter() - begun < 0.5


def test_wish_follows_the_first_mention():
    result = write_words("Mika and Bolt, then Mika", TWO_CATS, {"Mika": "wearing a red  scarf", "Bolt": " "})
    assert result.prompt == "a cat wearing a red scarf and another cat, then the cat"
    assert dict(result.words) == {"Mika": ("cat#1", "cat#3"), "Bolt": ("cat#2",)}


def test_wish_names_characters():
    """They count as mentioned there, also for the articles of later ones."""
    result = write_words("Mika meets Bolt", TWO_CATS, {"Mika": "with Bolt's hat", "Bolt": "beside Mika"})
    assert result.prompt == "a cat with another cat's hat meets the other cat beside the cat"
    assert dict(result.words) == {"Mika": ("cat#1", "cat#4"), "Bolt": ("cat#2", "cat#3")}


@pytest.mark.parametrize(
    ("prompt", "message"), [("Bolt alone", "does not name"), ("Mika's hat and Mika", "as a possessive")]
)
def test_wish_without_a_place_raises(prompt, message):
    with pytest.raises(UserError, match=message):
        write_words(prompt, TWO_CATS, {"Mika": "with a scarf"})
