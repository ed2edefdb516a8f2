"""The demo samples the right images and puts them in the right places."""

import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image, ImageColor

import realcustom_jax as rc
from realcustom_jax.toybox import BACKGROUNDS, Identity, demo, is_held_out, render_reference, render_scene
from realcustom_jax.toybox.demo_sheet import (
    ACCENTS,
    COLUMNS,
    HAIRLINE,
    IMAGE,
    PAPER,
    SPACE,
    WIDTH,
    Picture,
    Row,
    demo_sheet,
    enlarge,
    spotlight,
    steps_shown,
)

STEPS = 7
# any held-out subjects
BIRD, BALLOON = Identity("bird", 29), Identity("balloon", 59)


def picture(background, identities, prompt="a cat somewhere", seed=0):
    """A picture as a perfect model makes it: scenes drawn by the toybox, masks from their silhouettes."""
    scene = render_scene(background, identities, seed)
    other = render_scene(background, [Identity(i.word, 1) for i in identities], seed)
    masks = scene.masks.reshape(len(identities), 16, 4, 16, 4).mean((2, 4))
    return Picture(background, prompt, other.image, scene.image, np.stack([masks] * STEPS).astype(np.float32))


def row(identities, backgrounds, **changes):
    values = {
        "words": tuple(i.word for i in identities),
        "references": tuple(render_reference(i).image for i in identities),
        "descriptions": tuple(f"one certain {i.word}" for i in identities),
        "pictures": tuple(picture(b, identities) for b in backgrounds),
    }
    return Row(**{**values, **changes})


def columns_with(sheet, image, side=IMAGE):
    """The index of the sheet's column for each place that shows the enlarged image."""
    pixels, tile = np.asarray(sheet), np.asarray(enlarge(image, side))
    found = []
    for column, x in enumerate(COLUMNS):
        strip = pixels[:, x : x + side]
        rows = [y for y in range(len(strip) - side + 1) if (strip[y] == tile[0]).all()]
        found += [column for y in rows if (strip[y : y + side] == tile).all()]
    return found


def test_images_are_in_their_columns():
    single, double = row([BIRD], ("beach", "snow")), row([BIRD, BALLOON], ("meadow",))
    sheet = demo_sheet([single, double])
    assert sheet.mode == "RGB"
    assert sheet.width == WIDTH
    assert columns_with(sheet, single.references[0]) == [0, 0]  # the bird is in both rows
    assert columns_with(sheet, double.references[1]) == [1]
    for k, shown in enumerate(single.pictures):
        assert columns_with(sheet, shown.text_only) == [2 * k + 1]
        assert columns_with(sheet, shown.customized) == [2 * k + 2]
    assert columns_with(sheet, spotlight(double.pictures[0].customized, double.pictures[0].masks[-1])) == [2]
    assert columns_with(sheet, double.pictures[0].text_only) == [3]
    assert columns_with(sheet, double.pictures[0].customized) == [4]


def test_rows_and_masks_increase_sheet_height():
    one = row([BIRD], ("beach", "snow"))
    with_masks = row([BIRD], ("beach", "snow"), show_masks=True)
    heights = [demo_sheet(rows).height for rows in ([], [one], [with_masks], [one, with_masks])]
    assert heights == sorted(set(heights))
    assert heights[3] - heights[2] >= IMAGE


@pytest.mark.parametrize("prompt", ["a cat " + "and more " * 40, "a " + "n" * 150, "x" * 400 + " cat"])
def test_labels_stay_in_their_boxes(prompt):
    shown = picture("beach", [BIRD], prompt)
    wordy = row([BIRD], (), pictures=(shown, shown), descriptions=("purple " * 40,), show_masks=True)
    pixels = np.asarray(demo_sheet([wordy]))
    paper = np.array(ImageColor.getrgb(PAPER))
    assert (pixels[:, -30:] == paper).all()
    # From the line under the title to the images, the space between the groups stays free.
    line = (pixels[:, COLUMNS[0] : COLUMNS[-1]] == ImageColor.getrgb(HAIRLINE)).all((1, 2)).argmax()
    frame = (pixels[:, COLUMNS[2] : COLUMNS[2] + IMAGE] == ImageColor.getrgb(ACCENTS[0])).all((1, 2)).argmax()
    assert 0 < line < frame
    for x in (COLUMNS[1], COLUMNS[3]):
        assert (pixels[line + 1 : frame - 1, x - SPACE + 5 : x - 5] == paper).all()


def test_long_label_shrinks_to_fit():
    """A truncated label would be as high as a short one."""

    def ink(description):
        shown = row([BIRD], ("beach",), descriptions=(description,))
        pixels = np.asarray(demo_sheet([shown]))[:, COLUMNS[0] : COLUMNS[0] + IMAGE]
        tile = np.asarray(enlarge(shown.references[0], IMAGE))
        top = next(y for y in range(len(pixels)) if (pixels[y : y + IMAGE] == tile).all())
        dark = (pixels[top - 28 : top - 3] != ImageColor.getrgb(PAPER)).any(axis=2)
        rows, columns = (np.flatnonzero(dark.any(axis=axis)) for axis in (1, 0))
        return np.ptp(rows), np.ptp(columns)

    (height, width), (smaller, wide) = ink("plum bird"), ink("plum bird" + " striped" * 4)
    assert width < IMAGE / 2
    assert 0.9 * IMAGE < wide < IMAGE
    assert smaller < height


def test_spotlight_keeps_inside_and_fades_outside():
    image = np.full((64, 64, 3), (200, 40, 40), np.uint8)
    mask = np.zeros((1, 16, 16), np.float32)
    mask[0, 4:12, 4:12] = 0.3
    shown = spotlight(image, mask)
    assert shown.shape == (256, 256, 3)
    assert tuple(shown[128, 128]) == (200, 40, 40)
    assert tuple(shown[65, 128]) == ImageColor.getrgb(ACCENTS[0])
    outside = shown[10, 10].astype(int)
    assert outside.min() > 200
    assert np.ptp(outside) == 0
    empty = spotlight(image, np.zeros((2, 16, 16), np.float32))
    assert (empty == empty[0, 0]).all()


@pytest.mark.parametrize(("side", "sharp"), [(192, True), (160, False), (100, False)])
def test_enlarge_keeps_colours_and_sharp_pixels(side, sharp):
    image = render_reference(BIRD).image
    large = np.asarray(enlarge(image, side))
    assert large.shape == (side, side, 3)
    if sharp:
        np.testing.assert_array_equal(large, image.repeat(3, 0).repeat(3, 1))
    # Averaging keeps the overall colour, to rounding.
    np.testing.assert_allclose(large.mean((0, 1)), image.mean((0, 1)), atol=1.0)


def test_steps_shown_are_evenly_spaced():
    assert steps_shown(25) == [0, 5, 10, 14, 19, 24]
    assert steps_shown(3) == [0, 1, 2]
    assert steps_shown(1) == [0]


class FakeSampler:
    """Replaces `rc.sample` with a pipeline: returns scenes and records the calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, subjects=None, seed=None):
        self.calls.append((prompts, subjects, seed))
        images = np.stack([render_scene("beach", [BIRD], s).image for s in seed])
        masks = np.ones((len(prompts), STEPS, 2, 16, 16), np.float32) if subjects else None
        return types.SimpleNamespace(images=images, masks=masks)


def test_demo_follows_its_rule():
    """Every fourth word of the toybox, the first held-out seed, and the backgrounds one after another."""
    first = next(seed for seed in range(100) if is_held_out(seed))
    cat, robot, mushroom, balloon = (Identity(w, first) for w in ("cat", "robot", "mushroom", "balloon"))
    assert [subjects for subjects, _ in demo.PLAN] == [
        (cat,),
        (robot,),
        (mushroom,),
        (balloon,),
        (cat, balloon),
    ]
    assert [place for _, places in demo.PLAN for place in places] == list(BACKGROUNDS[:9])


def test_demo_uses_held_out_subjects_and_equal_seeds():
    sampler = FakeSampler()
    rows = demo.sample_rows(sampler, seed=5)
    (prompts, no_subjects, seeds), (same_prompts, subjects, same_seeds) = sampler.calls
    assert no_subjects is None
    assert (prompts, seeds) == (same_prompts, same_seeds)
    assert seeds[0] == 5
    assert len(set(seeds)) == len(seeds)
    assert all(is_held_out(i.seed) for identities, _ in demo.PLAN for i in identities)
    for prompt, given in zip(prompts, subjects, strict=True):
        assert 1 <= len(given) <= 2
        assert all(isinstance(s, rc.Subject) and s.words in prompt.split() for s in given)
    assert [len(r.pictures) for r in rows] == [len(places) for _, places in demo.PLAN]
    assert {p.masks.shape[1] for r in rows for p in r.pictures if len(r.words) == 1} == {1}
    assert sum(r.show_masks for r in rows) == 1


def test_demo_writes_all_files(tmp_path):
    rows = demo.sample_rows(FakeSampler(), seed=0)
    sheet = demo.write_images(rows, tmp_path / "made" / "here")
    written = {str(p.relative_to(sheet.parent)) for p in sheet.parent.rglob("*.png")}
    names = {p.name for r in rows for p in r.pictures}
    assert {f"text_only_{n}.png" for n in names} | {f"customized_{n}.png" for n in names} <= written
    assert {"demo.png", "reference_robot.png", "masks/robot_night_robot_step_07.png"} <= written
    with Image.open(sheet) as image:
        assert image.width == WIDTH
    with Image.open(sheet.parent / "masks/robot_night_robot_step_07.png") as mask:
        assert (mask.mode, mask.size) == ("L", (64, 64))


def run(*arguments):
    command = [sys.executable, "-m", "realcustom_jax.toybox.demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_describes_the_demo():
    result = run("--help")
    assert result.returncode == 0
    assert "from the text alone" in result.stdout


@pytest.mark.parametrize("mistake", ["model", "out", "seed"])
def test_user_mistake_gives_one_line_error(mistake, tmp_path):
    (tmp_path / "file").touch()
    arguments = {
        "model": ("--model", tmp_path / "nowhere", "--out", tmp_path / "out"),
        "out": ("--model", "toybox", "--out", tmp_path / "file"),
        "seed": ("--model", "toybox", "--out", tmp_path / "out", "--seed", "-1"),
    }[mistake]
    result = run(*map(str, arguments))
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    assert {"model": "nowhere", "out": "file", "seed": "-1"}[mistake] in result.stderr
