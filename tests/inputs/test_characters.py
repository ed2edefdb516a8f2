"""Characters: checks, saving and reading, and files that may come from anyone."""

import io
import json

import numpy as np
import pytest
from PIL import Image

import realcustom_jax as rc
from realcustom_jax.inputs.characters import file_name
from realcustom_jax.inputs.transforms import load_image

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def full() -> rc.Character:
    return rc.Character(
        "Mika", word="cat", description="a round cat", images=[IMAGE, IMAGE[::-1]], face=[(1, 2, 9, 9), None],
        face_strength=0.5, body_strength=2,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["mika", "mika.zip"])
def test_saved_character_is_read_back(tmp_path, name):
    character = full()
    again = rc.Character.load(character.save(tmp_path / name))
    assert repr(again) == repr(character) and again.face == character.face
    for own, other in zip(character.photos, again.photos, strict=True):
        np.testing.assert_array_equal(load_image(own), load_image(other))


def test_zip_has_the_same_bytes_each_time(tmp_path):
    first, second = (full().save(tmp_path / f"{k}.zip").read_bytes() for k in (1, 2))
    assert first == second


def test_metadata_of_photos_is_not_shared(tmp_path):
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x010E] = "taken at home"
    Image.fromarray(IMAGE).save(buffer, "JPEG", exif=exif)
    path = rc.Character("Mika", buffer.getvalue(), "cat").save(tmp_path / "mika")
    assert b"taken at home" in buffer.getvalue()
    assert b"taken at home" not in (path / "image_0.png").read_bytes()


def test_subject_has_the_strengths_of_the_character():
    subject = full().subject(("cat#2",), body_strength=0.1)
    assert subject.words == ("cat#2",) and subject.faces == ((1, 2, 9, 9), None)
    assert (subject.face_strength, subject.body_strength) == (0.5, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "name is empty"),
        ({"name": "12"}, "needs a letter"),
        ({"name": "x" * 41}, "41 characters"),
        ({"name": 3}, "must be a text"),
        ({"name": "a\x07"}, "cannot be shown"),
        ({"word": " "}, "word is empty"),
        ({"description": "x" * 301}, "301 characters"),
        ({"image": b"no image"}, "cannot be decoded"),
        ({"image": None}, "takes an image, or images"),
        ({"image": None, "images": [IMAGE] * 17}, "17 images; at most 16"),
        ({"face": (5, 5, 5, 9)}, "is empty"),
        ({"face_strength": 2}, "needs a face box"),
    ],
)
def test_invalid_values_raise_one_sentence(changes, message):
    with pytest.raises(rc.UserError, match=message) as error:
        rc.Character(**{"name": "Mika", "image": IMAGE, "word": "cat", **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (b"", "is not valid JSON"),
        (b"[]", "needs name, word"),
        ({"name": "Mika"}, "needs name, word"),
        ({"images": ["../x.png"]}, "is not a file of the character"),
        ({"images": [".hidden"]}, "is not a file of the character"),
        ({"images": ["gone.png"]}, "is missing"),
        ({"images": [], "name": "Mika"}, "takes an image, or images"),
        ({"face": "left"}, "must be a box"),
        ({"images": ["image_0.png"] * 50_000}, "at most 16 images, not 50000"),
    ],
)
def test_damaged_character_raises_one_sentence(tmp_path, values, message):
    path = full().save(tmp_path / "mika") / "character.json"
    if isinstance(values, dict):
        whole = json.loads(path.read_text())
        values = json.dumps(values if values == {"name": "Mika"} else {**whole, **values}).encode()
    path.write_bytes(values)
    with pytest.raises(rc.UserError, match=message) as error:
        rc.Character.load(path.parent)
    assert "\n" not in str(error.value)


def test_missing_character_is_named(tmp_path):
    with pytest.raises(rc.UserError, match="is neither a folder nor a file"):
        rc.Character.load(tmp_path / "nowhere")
    with pytest.raises(rc.UserError, match=r"there is no character\.json"):
        rc.Character.load(tmp_path)


def test_file_names_are_safe():
    assert [file_name(name) for name in ("Mika", "a/../b", "R2-D2", "…", "Žofie 2")] == [
        "Mika", "a_b", "R2-D2", "character", "Žofie_2",
    ]  # fmt: skip
