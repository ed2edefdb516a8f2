"""The Create tab without a browser: the same bytes as from Python, words, masks, fields."""

import threading

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.studio.create import Form, Reference, create, masks_over, propose_words
from realcustom_jax.studio.fields import box_of, changed_options, field_of, seed_of, text_of_box
from realcustom_jax.studio.jobs import Report
from realcustom_jax.studio.shown import Result, enlarged

FEW = {"steps": 2, "mask_steps": 2}


@pytest.fixture(scope="module")
def toybox() -> rc.Pipeline:
    return rc.load("toybox")


@pytest.fixture(scope="module")
def bird(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("photos") / "bird.png"
    rc.example("bird").save(path)
    return str(path)


@pytest.fixture
def report() -> Report:
    return Report(threading.Event(), lambda update: None)


def test_form_gives_the_bytes_of_sample(toybox, bird, report, tmp_path):
    form = Form(
        "a bird on the beach", [Reference(bird, "bird", "10, 10, 40, 40", 0.5, 1.5)], "7", 2, "rain", FEW
    )
    own = Result.write(create(toybox, form, report), tmp_path)
    subject = rc.Subject(bird, "bird", face=(10, 10, 40, 40), face_strength=0.5, body_strength=1.5)
    out = rc.sample(
        toybox, "a bird on the beach", [subject], [7, 8], negative_prompt="rain", progress=False, **FEW
    )
    assert [path.read_bytes() for path in own.images] == out.png_files()
    assert [path.name for path in own.images] == ["image_7.png", "image_8.png"]
    assert own.gallery()[1][1] == "seed 8 · bird"


def test_empty_word_is_chosen_and_proposed(toybox, bird, report):
    form = Form("a bird and a house", [Reference(bird)], options=FEW)
    assert create(toybox, form, report).words == [[("bird",)]]
    assert propose_words(toybox, form.prompt, form.references) == (form.prompt, ["bird"])
    assert propose_words(toybox, form.prompt, [Reference(bird, "house")]) == (form.prompt, ["house"])


def test_missing_word_is_written_into_the_prompt(toybox, bird, report):
    form = Form("", [Reference(bird)], options=FEW)
    assert create(toybox, form, report).prompts == ["a bird"]
    assert propose_words(toybox, "on the beach", form.references) == ("a bird on the beach", ["bird"])
    with pytest.raises(rc.UserError, match="the prompt is empty"):
        create(toybox, Form("", [Reference(bird, "bird")], options=FEW), report)


def test_masks_colour_only_where_subjects_act():
    images = np.full((1, 8, 8, 3), 200, np.uint8)
    masks = np.zeros((1, 3, 2, 4, 4), np.float32)
    masks[0, :2, 0] = 1  # earlier steps do not count
    masks[0, -1, 1, :, 2:] = 1
    out = np.asarray(masks_over(rc.Samples(images, masks, [[("a",), ("b",)]]), 0))
    assert (out[:, :3] == 200).all() and (out[:, -1] != 200).any()
    plain = rc.Samples(images, np.zeros((1, 3, 0, 4, 4), np.float32), [[]])
    np.testing.assert_array_equal(np.asarray(masks_over(plain, 0)), images[0])


def test_small_pictures_are_enlarged_without_blur():
    small = Image.fromarray(np.asarray([[[0, 0, 0], [255, 0, 0]]], np.uint8))
    big = enlarged(small, 10)
    assert big.size == (10, 5) and set(big.getdata()) == {(0, 0, 0), (255, 0, 0)}
    assert enlarged(big, 3) == big


def test_options_that_keep_their_default_are_not_passed_on():
    defaults = rc.SamplingOptions(steps=8, mask_layers=(0, 2))
    fields = {name: field_of(name, defaults) for name in rc.SamplingOptions.rules()}
    assert changed_options(fields, defaults) == {}
    changed = changed_options(
        {**fields, "steps": 9.0, "mask_layers": "1 3", "gamma_num": 0.5, "height": "", "width": "32"},
        defaults,
    )
    assert changed == {"steps": 9, "mask_layers": (1, 3), "gamma_num": 0.5, "width": 32}
    assert changed_options({"mask_layers": ""}, defaults) == {"mask_layers": None}


def test_typed_seeds_and_boxes():
    assert [seed_of(text) for text in ("", " 7 ", None, str(2**64 - 1))] == [0, 7, 0, 2**64 - 1]
    assert box_of("1, 2;3  4.5") == (1, 2, 3, 4.5) and box_of(" ") is None
    assert text_of_box((1.0, 2.0, 3.0, 4.5)) == "1, 2, 3, 4.5"


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (Form(""), "the prompt is empty"),
        (Form("x" * 10_000), "10000 characters"),
        (Form("a cat", seed="-1"), "the seed must be 0 or more"),
        (Form("a cat", seed="1.5"), "must be a whole number"),
        (Form("a cat", seed="9" * 30), "the seed must be from 0"),
        (Form("a cat", count=0), "from 1 to 4"),
        (Form("a cat", [Reference("no.png", "dog")]), "dog"),
        (Form("a cat", [Reference("no.png", "cat")]), "does not exist"),
        (Form("a cat", [Reference("no.png", "cat")] * 5), "at most 4"),
        (Form("a cat", [Reference("no.png", "cat", "1, 2, 3")]), "must be four numbers"),
        (Form("a cat", [Reference("no.png", "cat", "", 0.5)]), "face_strength needs a face box"),
        (Form("a cat", options={"steps": 0}), "steps must be"),
    ],
)
def test_mistakes_raise_one_sentence(toybox, report, form, message):
    with pytest.raises(rc.UserError, match=message) as error:
        create(toybox, form, report)
    assert "\n" not in str(error.value)
