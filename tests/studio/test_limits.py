"""Limits of the page's users."""

import pytest

import realcustom_jax as rc
from realcustom_jax.studio.limits import check_size


def test_images_have_at_most_four_times_the_models_pixels(flat_pipe):
    """The model's images have 16 x 16 pixels."""
    for height, width in ((32, 32), (16, 64), (64, 16), (8, 8)):
        check_size(flat_pipe, {"height": height, "width": width})
    for height, width in ((34, 32), (16, 66), (2**20, 2)):
        with pytest.raises(rc.UserError, match=f"{width}x{height} pixels is too large.* at most 1024 pixels"):
            check_size(flat_pipe, {"height": height, "width": width})
