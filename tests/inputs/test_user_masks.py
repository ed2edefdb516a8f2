"""User masks: every input type gives the same mask, and resizing averages by area."""

import io

import numpy as np
import pytest
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.user_masks import load_mask, resize_area


def test_all_input_types_give_the_same_mask(tmp_path):
    """Bool, uint8, float, grey and colour images; a transparent layer counts as black. Exact."""
    drawn = np.random.default_rng(0).integers(0, 2, (6, 9)).astype(bool)
    grey = drawn.astype(np.uint8) * 255
    layer = np.full((6, 9, 4), 255, np.uint8)
    layer[..., 3] = grey
    Image.fromarray(grey).save(tmp_path / "mask.png")
    png = io.BytesIO()
    Image.fromarray(layer).save(png, "PNG")
    kinds = [
        drawn,
        drawn.astype(np.uint8),
        np.stack([drawn] * 3, -1).astype(np.uint8),
        grey,
        grey / 255.0,
        grey[..., None],
        Image.fromarray(drawn),
        tmp_path / "mask.png",
    ]
    for kind in [*kinds, Image.fromarray(grey), np.stack([grey] * 3, -1), png.getvalue(), layer]:
        mask = load_mask(kind)
        assert mask.dtype == np.float32
        np.testing.assert_array_equal(mask, drawn.astype(np.float32))


def test_soft_mask_values_are_kept():
    np.testing.assert_array_equal(
        load_mask(np.full((2, 2), 0.1234567)), np.full((2, 2), np.float32(0.1234567))
    )
    np.testing.assert_allclose(load_mask(np.full((2, 2), 51, np.uint8)), 0.2, atol=1e-7)


@pytest.mark.parametrize(
    "mask",
    [
        np.full((2, 2), 1.5),
        np.full((2, 2), np.nan),
        np.zeros((2,)),
        np.zeros((0, 2)),
        np.zeros((2, 2), int),
        3,
    ],
)
def test_invalid_mask_gives_one_line_error(mask):
    with pytest.raises(UserError) as error:
        load_mask(mask)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (8, 12), (1, 1), (20, 30), (7, 12)])
def test_resize_averages_by_area(size):
    """Against a supersampled copy in which all edges fall between pixels; 1e-6, float32."""
    mask = np.random.default_rng(1).random((8, 12)).astype(np.float32)
    fine = mask.repeat(size[0], axis=0).repeat(size[1], axis=1)  # (8·h, 12·w)
    expected = fine.reshape(size[0], 8, size[1], 12).mean((1, 3))
    np.testing.assert_allclose(resize_area(mask, *size), expected, atol=1e-6)


def test_resize_to_same_size_is_identity():
    mask = np.random.default_rng(2).random((5, 6)).astype(np.float32)
    np.testing.assert_array_equal(resize_area(mask, 5, 6), mask)
