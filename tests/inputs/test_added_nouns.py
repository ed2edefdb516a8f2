"""Nouns are written into prompts that lack them, in the grammar of the sentence."""

import pytest

from realcustom_jax.inputs.added_nouns import with_nouns


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("on the beach at sunset", "a dog on the beach at sunset"),
        ("On the beach", "A dog on the beach"),
        ("IN THE SNOW", "A dog IN THE SNOW"),
        ("running in a meadow", "a dog running in a meadow"),
        ("with a red hat", "a dog with a red hat"),
        ("", "a dog"),
        ("   ", "a dog"),
        (", oil painting", "a dog, oil painting"),
        ("beach, sunset", "a dog, beach, sunset"),
        ("evening light", "a dog, evening light"),  # a time, not a verb
        ("Paris at night", "A dog, Paris at night"),  # names stay as they are
        ("a cup on a table", "a dog and a cup on a table"),
        ("The cup on a table", "A dog and the cup on a table"),
        ("two cups", "a dog and two cups"),
        ("a photo in the snow", "a photo of a dog in the snow"),
        ("A photo of the beach", "A photo of a dog and the beach"),
        ("an old oil painting of a harbour", "an old oil painting of a dog and a harbour"),
        ("watercolor painting, in the forest", "watercolor painting of a dog, in the forest"),
        ("a photo", "a photo of a dog"),
        ("a photographer in the snow", "a dog and a photographer in the snow"),  # not "a photo"
        ("a picture frame on a wall", "a dog and a picture frame on a wall"),  # not a caption
    ],
)
def test_noun_is_written_where_the_sentence_has_a_place_for_it(prompt, expected):
    assert with_nouns(prompt, ["dog"]) == expected


def test_several_nouns_have_their_articles():
    assert with_nouns("on the beach", ["owl", "cat"]) == "an owl and a cat on the beach"
    assert with_nouns("on the beach", ["scissors"]) == "scissors on the beach"
