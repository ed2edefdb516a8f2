"""Hints about reference images, and cutting subjects out."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import realcustom_jax as rc
from realcustom_jax.inputs.background import cut_out
from realcustom_jax.inputs.reference_hints import BLURRED, BUSY, SMALL, reference_hints

WORDS = {
    "busy": "background is busy",
    "small": "subject is small",
    "blurred": "is blurred",
    "size": "image is small",
}


def picture(radius: float = 0.3, noise: float = 0.0, blur: float = 0.0, side: int = 200) -> Image.Image:
    """A checked disc in the middle of a ground of one colour, or of noise."""
    rng = np.random.default_rng(0)
    ground = np.full((side, side, 3), 128.0) + noise * rng.normal(size=(side, side, 3))
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    disc = Image.new("L", (side, side))
    box = [side * (0.5 - radius), side * (0.5 - radius), side * (0.5 + radius), side * (0.5 + radius)]
    ImageDraw.Draw(disc).ellipse(box, fill=255)
    squares = (np.indices((side, side)) // 8).sum(axis=0) % 2
    checks = np.where(squares[..., None], [220, 40, 40], [250, 230, 60]).astype(np.uint8)
    image.paste(Image.fromarray(checks), mask=disc)
    return image.filter(ImageFilter.GaussianBlur(blur)) if blur else image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (picture(), []),
        (picture(noise=60), ["busy"]),
        (picture(radius=0.1), ["small"]),
        (picture(blur=6), ["blurred"]),
        (picture(radius=0.1, blur=6), ["small", "blurred"]),
        (picture(side=40), ["size"]),
        (Image.new("RGB", (200, 200), "white"), ["small", "blurred"]),
        (Image.new("RGB", (1, 1)), ["size", "small", "blurred"]),
        (rc.example("bird").resize((256, 256)), []),
    ],
)
def test_hints_name_what_is_wrong(image, expected):
    hints = reference_hints(image, tower_size=128)
    assert [next(k for k, text in WORDS.items() if text in hint.text) for hint in hints] == expected
    for hint in hints:
        assert hint.limit in (BUSY, SMALL, BLURRED, 64) and f"limit {hint.limit:g}" in str(hint)


def test_numbers_do_not_depend_on_resolution():
    small, large = (reference_hints(picture(noise=60).resize((s, s)))[0].value for s in (200, 1600))
    assert large == pytest.approx(small, rel=0.3)  # resizing smooths noise


def test_subject_is_cut_out_on_white():
    image = picture(noise=5)
    result = np.asarray(cut_out(image), np.int32)
    original = np.asarray(image, np.int32)
    y, x = np.indices((200, 200))
    distance = np.hypot(y - 100, x - 100)
    assert (result[distance > 70] == 255).mean() > 0.98
    assert (result[distance < 50] == original[distance < 50]).mean() > 0.95
    np.testing.assert_array_equal(np.asarray(cut_out(image)), result)  # the same each time


@pytest.mark.parametrize(
    ("image", "box", "message"),
    [
        (Image.new("RGB", (8, 8)), None, "too small"),
        (picture(), (500, 500, 510, 510), "has no room"),
        (picture(), (10, 10, 11, 11), "has no room"),
    ],
)
def test_what_cannot_be_cut_out_raises(image, box, message):
    with pytest.raises(rc.UserError, match=message):
        cut_out(image, box)
