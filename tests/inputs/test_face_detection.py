"""`find_face` on drawn faces, and the flags of `sample` for faces."""

import importlib
import runpy

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

import realcustom_jax as rc
from realcustom_jax.inputs.transforms import load_image


def drawn_face(width: int, height: int, x: float, y: float, radius: float) -> Image.Image:
    """A portrait, slightly blurred, with its face centred at (x, y)."""
    image = Image.new("RGB", (width, height), (120, 130, 140))
    draw = ImageDraw.Draw(image)

    def oval(dx, dy, rx, ry, colour):
        box = [x + (dx - rx) * radius, y + (dy - ry) * radius, x + (dx + rx) * radius, y + (dy + ry) * radius]
        draw.ellipse(box, fill=colour)

    oval(0, -0.25, 1.0, 1.15, (60, 40, 30))
    oval(0, 0.05, 0.85, 1.15, (225, 190, 165))
    for side in (-0.38, 0.38):
        oval(side, -0.18, 0.24, 0.13, (170, 130, 110))
        oval(side, -0.15, 0.17, 0.08, (245, 245, 245))
        oval(side, -0.15, 0.08, 0.08, (40, 30, 30))
        oval(side, -0.36, 0.24, 0.06, (80, 50, 40))
    oval(0, 0.2, 0.12, 0.2, (235, 205, 180))
    oval(0, 0.36, 0.16, 0.05, (160, 110, 95))
    oval(0, 0.62, 0.32, 0.09, (150, 70, 70))
    return image.filter(ImageFilter.GaussianBlur(0.03 * radius))


def overlap(box, other) -> float:
    """Intersection over union of two boxes."""
    left, top = np.maximum(box[:2], other[:2])
    right, bottom = np.minimum(box[2:], other[2:])
    shared = max(right - left, 0) * max(bottom - top, 0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return shared / (sum(areas) - shared)


@pytest.mark.parametrize(
    ("width", "height", "x", "y", "radius"),
    [
        (400, 300, 250, 150, 70),
        (300, 400, 110, 160, 60),
        (1600, 1200, 1000, 600, 300),
        (150, 150, 75, 75, 40),
    ],
)
def test_a_drawn_face_is_found(width, height, x, y, radius):
    box = rc.find_face(drawn_face(width, height, x, y, radius))
    assert overlap(box, (x - radius, y - radius, x + radius, y + radius)) > 0.5
    assert 0 <= box[0] < box[2] <= width and 0 <= box[1] < box[3] <= height


def test_the_largest_of_two_faces_is_found():
    image = drawn_face(600, 300, 450, 150, 90)
    image.paste(drawn_face(200, 300, 100, 150, 45), (0, 0))
    assert rc.find_face(image)[0] > 300


@pytest.mark.parametrize("size", [(300, 200), (1, 1), (1, 500), (4000, 3)])
def test_images_without_a_face_give_none(size):
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    assert rc.find_face(Image.new("RGB", size, "white")) is None
    assert rc.find_face(noise) is None


def test_missing_opencv_is_named(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(rc.UserError, match=r"this needs OpenCV: pip install \"realcustom_jax\[faces\]\""):
        rc.find_face(Image.new("RGB", (64, 64)))


def parsed(line: str) -> list[rc.Subject]:
    command = runpy.run_module("realcustom_jax.sample")
    return command["_subjects"](command["_parser"]().parse_args(f"--prompt x {line}".split()), ())


def test_flags_give_faces_and_strengths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = drawn_face(400, 300, 250, 150, 70)
    photo.save("a.png")
    Image.new("RGB", (64, 64)).save("b.png")
    first, second = parsed(
        "--subject man=a.png --subject cat=a.png,b.png --face 1=auto --face 2=1,2,30,40|none "
        "--face-strength 1=1.5 --body-strength 2=0.25"
    )
    assert first.face == rc.find_face(load_image("a.png"))
    assert (first.face_strength, first.body_strength) == (1.5, 1.0)
    assert second.faces == ((1.0, 2.0, 30.0, 40.0), None)
    assert (second.face_strength, second.body_strength) == (1.0, 0.25)


def test_photo_without_a_face_keeps_one_strength(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("b.png")
    with pytest.warns(UserWarning, match="no face is found on a photo of subject 1: --body"):
        (subject,) = parsed("--subject cat=b.png --face 1=auto --body-strength 1=0.5")
    assert subject.faces == (None,) and subject.body_strength == 0.5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--face-strength 1=2", "needs the face of subject 1: --face 1=auto or a box"),
        ("--face 1=1,2,3", r"must be \(left, top, right, bottom\)"),
        ("--face 1=1,2,3,x", "must be a number, not 'x'"),
        ("--face 1=1,2,3,4|none", "has 2 boxes for 1 photos"),
        ("--body-strength 1=-1", "--body-strength 1 must be 0 or more"),
    ],
)
def test_wrong_flags_raise_one_sentence(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("b.png")
    with pytest.raises(rc.UserError, match=message):
        parsed(f"--subject cat=b.png {flags}")


def test_records_keep_faces(micro_pipe, tmp_path):
    from realcustom_jax.outputs.records import read_record

    subject = rc.Subject(
        images=[np.zeros((20, 20, 3), np.uint8)] * 2, words="cat", face=[(1, 2, 9, 9), None],
        face_strength=0.5, body_strength=2,
    )  # fmt: skip
    made = rc.sample(micro_pipe, "a cat", subjects=[subject], steps=1, mask_steps=1, progress=False)
    (again,) = read_record(made.save(tmp_path)[0]).subjects
    assert (again.face, again.face_strength, again.body_strength) == (subject.face, 0.5, 2.0)
