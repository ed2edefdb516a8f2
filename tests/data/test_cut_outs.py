"""Subjects' masks in COCO's formats, and the cut-outs that are made with them."""

import itertools

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.data.cut_outs import (
    AREA,
    EXTENT,
    cropped_mask,
    cut_out,
    mark,
    marked_mask,
    marked_words,
    marks,
    shrink_mask,
    vary_cut_out,
)
from realcustom_jax.inputs.transforms import center_crop_resize


def run_lengths(mask):
    """COCO's counts by a plain loop over the columns."""
    pixels = [bool(mask[y, x]) for x in range(mask.shape[1]) for y in range(mask.shape[0])]
    counts = [0] if pixels[0] else []
    return counts + [len(list(run)) for _, run in itertools.groupby(pixels)]


@pytest.mark.parametrize("corner", [(0, 0), (4, 2)], ids=["begins inside", "ends inside"])
def test_marks_round_trip_as_coco_run_lengths(corner):
    mask = np.random.default_rng(0).random((5, 3)) < 0.4
    mask[corner] = True
    entry = mark("cat", mask)
    assert entry == {"words": "cat", "segmentation": {"size": [5, 3], "counts": run_lengths(mask)}}
    assert marks({"key": "a", "metadata": {"subjects": [entry]}}) == [entry]
    assert marked_words(entry, "a") == "cat"
    np.testing.assert_array_equal(marked_mask(entry, "a"), mask)


@pytest.mark.parametrize("metadata", [{}, {"subjects": []}, {"subjects": "cat"}])
def test_example_without_marks_raises(metadata):
    with pytest.raises(UserError, match="the example 'k' marks no subjects"):
        marks({"key": "k", "metadata": metadata})


@pytest.mark.parametrize(
    ("segmentation", "sentence"),
    [
        (None, "TypeError"),
        ({"size": [2, 2]}, "KeyError: 'counts'"),
        ({"size": [2, 2], "counts": [1, 2]}, "not those of 2×2 pixels"),
        ({"size": [2, 2], "counts": [5, -1]}, "not those of 2×2 pixels"),
        ({"size": [2, 2], "counts": [0, 10**30]}, "not those of 2×2 pixels"),
        ({"size": [2, 2], "counts": [0.9, 3.1]}, "neither a list of whole numbers nor text"),
        ({"size": [2, 2], "counts": {}}, "neither a list of whole numbers nor text"),
        ({"size": [2.0, 2.0], "counts": [4]}, "the size must be"),
        ({"size": [2], "counts": [4]}, "ValueError"),
        ({"size": [10**6, 10**6], "counts": [10**12]}, "the size must be"),
        ({"size": [2, 2], "counts": ""}, "not those of 2×2 pixels"),
        ({"size": [2, 2], "counts": "12"}, "not those of 2×2 pixels"),
        ({"size": [2, 2], "counts": "14"}, "not those of 2×2 pixels"),
        ({"size": [2, 2], "counts": "1N"}, "not those of 2×2 pixels"),  # −2
        ({"size": [2, 2], "counts": "1o"}, "not compressed run lengths"),  # cut off
        ({"size": [2, 2], "counts": "1é"}, "not compressed run lengths"),
        ([[0, 0, 1, 0, 1]], "a polygon is not a list"),
        ([[0, 0, 1, 1]], "a polygon is not a list"),  # to pycocotools, a box
        ([[0, 0, 1, 0, float("nan"), 1]], "a polygon is not a list"),
        ([[0, 0, 1, 0, "a", 1]], "ValueError"),
        ([1, 2, 3], "a polygon is not a list"),
        ([], "there is no polygon"),
    ],
)
def test_invalid_mark_gives_one_line_error_naming_example(segmentation, sentence):
    with pytest.raises(UserError, match="the example 'k' has an invalid subject entry") as error:
        marked_mask({"words": "cat", "size": [2, 2], "segmentation": segmentation}, "k")
    assert sentence in str(error.value)


def compressed(counts):
    """COCO's text by its definition.

    From the fourth number on it holds differences to the number two before, in digits of 5 bits, the lowest
    first, with a sixth bit where more follow, as characters from "0" on.
    """
    text = ""
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        while True:
            digit, rest = rest & 31, rest >> 5
            more = rest != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
            if not more:
                break
    return text


@pytest.mark.parametrize("size", [(5, 3), (1, 1), (70, 40), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_compressed_run_lengths_equal_plain_ones(size, share):
    mask = np.random.default_rng(1).random(size) < share
    counts = run_lengths(mask)
    for given in (counts, compressed(counts)):
        found = marked_mask({"segmentation": {"size": list(size), "counts": given}}, "k")
        assert found.dtype == bool
        np.testing.assert_array_equal(found, mask)


def test_run_lengths_of_wrong_size_raise():
    """Truncated text, and text with one more character: the runs must cover exactly the mask's size."""
    mask = np.random.default_rng(2).random((9, 7)) < 0.5
    text = compressed(run_lengths(mask))
    damaged = {text[:i] for i in range(len(text))} | {text + "1"}
    for given in damaged:
        with pytest.raises(UserError, match="'k' has an invalid subject entry"):
            marked_mask({"segmentation": {"size": [9, 7], "counts": given}}, "k")


def test_polygons_are_filled_and_merged():
    """Against the side of each edge on which a pixel's centre lies; pixels at an edge are not compared.

    Corners beyond the picture are moved to its border.
    """
    triangle, box = [2, 1, 28, 6, 9, 30], [30, 20, 60, 20, 60, 50, 30, 50]
    found = marked_mask({"size": [40, 50], "segmentation": [triangle, box]}, "k")
    y, x = np.mgrid[:40, :50] + 0.5
    corners = np.reshape(triangle, (3, 2))
    sides = []
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        sides.append(((x1 - x0) * (y - y0) - (y1 - y0) * (x - x0)) / np.hypot(x1 - x0, y1 - y0))
    distance = np.min(sides, axis=0)  # to the nearest edge, positive inside
    clear = np.abs(distance) > 1
    expected = (distance > 0) | ((x > 30) & (y > 20))
    assert clear.mean() > 0.8 and expected[clear].mean() > 0.1
    np.testing.assert_array_equal(found[clear], expected[clear])


def test_mark_without_words_raises():
    with pytest.raises(UserError, match="'k' marks a subject without its words"):
        marked_words({"segmentation": {}}, "k")


def test_mask_is_cropped_like_its_image():
    """The subject's colour in the crop of the picture, against the crop of its mask, of half the size."""
    image, mask = picture(60, 90, 10, 20, 30, 60)
    crop = center_crop_resize(image, (40, 40))
    found = cropped_mask(mask[::2, ::2], (60, 90), (40, 40), "k")
    red = crop[..., 0] > 100
    assert 100 < red.sum() < 1000
    assert (found != red).sum() <= np.count_nonzero(red ^ np.roll(red, 1, 0)) + 40  # except at the edges


def test_shrink_mask_averages_each_square():
    """Against a loop; ±0.5 of 255 is the rounding to bytes."""
    mask = np.random.default_rng(3).random((12, 8)) < np.linspace(0, 1, 8)
    found = shrink_mask(mask, 4)
    assert found.shape == (3, 2) and found.dtype == np.uint8
    for y in range(3):
        for x in range(2):
            count = sum(mask[4 * y + i, 4 * x + j] for i in range(4) for j in range(4))
            assert abs(int(found[y, x]) - 255 * count / 16) <= 0.5
    assert shrink_mask(np.ones((4, 4), bool), 4) == 255


@pytest.mark.parametrize(("left", "whole"), [(0, False), (6, False), (11, True), (30, True)])
def test_subject_counts_only_with_half_its_area_in_crop(left, whole):
    """Of 160×60 the crop has columns 50 to 110; the subject is 40 wide, from 3·left on."""
    _, mask = picture(60, 160, 10, 3 * left, 30, 3 * left + 40)
    assert cropped_mask(mask, (60, 160), (20, 20), "k").any() == whole


def test_tiny_subject_is_ignored():
    _, mask = picture(60, 60, 10, 10, 13, 13)
    assert not cropped_mask(mask, (60, 60), (60, 60), "k").any()


def test_mask_with_other_aspect_ratio_raises():
    """For example an annotation of a phone's photo made before its rotation."""
    with pytest.raises(
        UserError, match=r"'k' marks a subject in a picture of 64×48, but the picture has 48×64"
    ):
        cropped_mask(np.ones((48, 64), bool), (64, 48), (16, 16), "k")


def picture(height, width, top, left, bottom, right):
    """A red box on blue, and its mask."""
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return np.where(mask[..., None], np.uint8([200, 30, 30]), np.uint8([0, 0, 255])), mask


@pytest.mark.parametrize(
    "box", [(10, 20, 30, 40), (0, 0, 20, 20), (40, 70, 60, 90)], ids=["middle", "corner", "other corner"]
)
def test_cut_out_is_centred_scaled_and_without_background(box):
    image, mask = picture(60, 90, *box)
    rgba = np.asarray(cut_out(image, mask, 64)).astype(int)
    alpha = rgba[..., 3] / 255
    assert alpha.mean() == pytest.approx(AREA, rel=0.03)  # soft edges
    centre = [(alpha.sum(axis) * (np.arange(64) + 0.5)).sum() / alpha.sum() for axis in (1, 0)]
    np.testing.assert_allclose(centre, 32, atol=0.2)
    # Bicubic filtering overshoots at edges, but the background's blue, 255, must not show.
    seen = rgba[alpha > 0.5][:, :3]
    np.testing.assert_allclose(np.median(seen, axis=0), [200, 30, 30], atol=1)
    assert seen[:, 2].max() < 50


def test_long_subject_is_scaled_by_its_length():
    rgba = np.asarray(cut_out(*picture(60, 90, 25, 5, 30, 85), 64))
    inside = np.flatnonzero((rgba[..., 3] > 127).any(axis=0))
    assert inside[-1] - inside[0] + 1 == pytest.approx(EXTENT * 64, abs=1)


def test_zero_strength_only_adds_background_and_flips():
    sheet = Image.fromarray(
        np.dstack([np.full((64, 64, 3), [200, 30, 30], np.uint8), np.zeros((64, 64), np.uint8)])
    )
    sheet.paste((200, 30, 30, 255), (10, 20, 30, 50))
    seen = {False: 0, True: 0}
    for seed in range(20):
        photo = vary_cut_out(sheet, np.random.default_rng(seed), 0.0)
        red = (photo == [200, 30, 30]).all(axis=-1)
        rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
        assert (rows[0], rows[-1]) == (20, 49)
        flipped = columns[0] != 10
        assert (columns[0], columns[-1]) == ((34, 53) if flipped else (10, 29))
        seen[flipped] += 1
        assert photo[~red].min() >= 145  # light: 170 less a tilt of 25
    assert min(seen.values()) >= 4


def test_full_strength_variation_stays_within_limits():
    sheet = Image.fromarray(
        np.dstack([np.full((64, 64, 3), [150, 60, 60], np.uint8), np.zeros((64, 64), np.uint8)])
    )
    sheet.paste((150, 60, 60, 255), (22, 22, 42, 42))
    areas, centres, colours = [], [], []
    for seed in range(60):
        photo = vary_cut_out(sheet, np.random.default_rng(seed), 1.0).astype(int)
        inside = photo[..., 1] < 105  # the ground is lighter
        areas.append(inside.sum() / 400)
        centres.append([x.mean() + 0.5 for x in np.nonzero(inside)])
        colours.append(np.median(photo[inside], axis=0))
    assert 0.55 < min(areas) < 0.75 and 1.1 < max(areas) < 1.35  # 0.8² … 1.12², soft edges
    assert 3 < np.abs(np.subtract(centres, 32)).max() < 6
    spread = np.ptp(colours, axis=0)
    assert (spread > 12).all() and (spread < 60).all()


def test_random_draws_do_not_depend_on_strength():
    sheet = cut_out(*picture(60, 90, 10, 20, 30, 40), 64)
    after = []
    for strength in (0.0, 1.0):
        rng = np.random.default_rng(1)
        vary_cut_out(sheet, rng, strength)
        after.append(rng.random())
    assert after[0] == after[1]
