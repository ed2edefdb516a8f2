"""The image towers' views against PyTorch's `interpolate`, at the sizes that published models use."""

import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.inputs.views import reference_views
from realcustom_jax.models.config import RealCustomConfig

# (height, width): smaller and larger than 768, wide and tall.
SIZES = [(600, 400), (480, 1900), (1024, 1024), (1333, 777)]


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def published_views(image: np.ndarray, size: int) -> np.ndarray:
    """PyTorch's: the whole image at 2·size, that at size with aligned corners, and every other pixel."""
    torch = pytest.importorskip("torch", reason="compares with PyTorch: install realcustom_jax[parity]")
    interpolate = torch.nn.functional.interpolate
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255))
    large = interpolate(pixels, (2 * size, 2 * size), mode="bilinear", align_corners=False)
    small = interpolate(large, (size, size), mode="bilinear", align_corners=True)
    views = [small, *(large[:, :, row::2, column::2] for row in (0, 1) for column in (0, 1))]
    return (torch.cat(views).clamp(0, 1) * 255).to(torch.uint8).numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("shape", SIZES)
def test_views_equal_published_ones(shape):
    """Up to rounding: the last step truncates to 8 bits, and values that are exact levels may round down.

    They differ by one level. This is most frequent at 1024 pixels, whose weights are sixths:
    PyTorch with one thread differs from us in 2 of 1000 values, with two threads in 5 of 100,000.
    """
    image = photo(*shape)
    ours, published = reference_views(image, 384, high_res=True), published_views(image, 384)
    difference = np.abs(ours.astype(int) - published)
    assert ours.shape == (5, 384, 384, 3)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 5e-3


@pytest.mark.parametrize("high_res", [False, True])
def test_reference_fit_modes_of_non_square_image(high_res):
    """A tall image with a red top: squash and pad show it, crop does not; pad alone shows white borders."""
    image = np.full((90, 30, 3), 100, np.uint8)
    image[:20] = (255, 0, 0)
    whole = {fit: reference_views(image, 24, high_res, fit)[0] for fit in ("squash", "crop", "pad")}
    red, white = np.array([255, 0, 0]), np.array([255, 255, 255])

    def share(view: np.ndarray, colour: np.ndarray) -> float:
        return (np.abs(view.astype(int) - colour).max(axis=-1) < 40).mean()

    assert share(whole["squash"], red) == pytest.approx(20 / 90, abs=0.05)
    assert share(whole["pad"], red) == pytest.approx(20 / 270, abs=0.03)
    assert share(whole["pad"], white) == pytest.approx(2 / 3, abs=0.06)
    assert share(whole["crop"], red) == share(whole["crop"], white) == share(whole["squash"], white) == 0


def test_default_reference_fit_depends_on_projector():
    image = photo(40, 60)
    expected = center_crop_resize(image, 24)[None]
    np.testing.assert_array_equal(reference_views(image, 24, high_res=False), expected)
    assert RealCustomConfig().reference_fit == "crop"
    assert RealCustomConfig(projector="deep").reference_fit == "squash"
    assert RealCustomConfig(projector="deep", reference_fit="pad").reference_fit == "pad"
    with pytest.raises(UserError, match=r"reference_fit 'stretch' is unknown; known: squash, crop, pad"):
        RealCustomConfig(reference_fit="stretch")
