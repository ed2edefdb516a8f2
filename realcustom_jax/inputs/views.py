"""Views of a reference image for the image towers. Only numpy, so that loader workers can run it.

The views follow the published RealCustom++ inference. The image is resized to twice the input size of the
towers. One view is that image at half the size, the other four are its strided parts (every other pixel).
"""

from collections.abc import Callable

import numpy as np
from PIL import Image

from realcustom_jax.inputs.transforms import center_crop_resize
from realcustom_jax.models.config import default_fit

_WHITE = 255  # like the background behind transparent pixels

# (source side, output side) → positions of the output's pixel centres in the source, along one side.
_Places = Callable[[int, int], np.ndarray]


def reference_views(image: np.ndarray, size: int, high_res: bool, fit: str | None = None) -> np.ndarray:
    """Views of a reference image, for the image towers.

    Args:
      image: uint8 (H, W, 3).
      size: side S of the towers' input, in pixels.
      high_res: the five views of RealCustom++ instead of one.
      fit: how a non-square image becomes square, see `RealCustomConfig.reference_fit`; None for its default.

    Returns:
      uint8 (V, S, S, 3): the whole image and, if `high_res`, the four parts of the 2×2 strided split.
    """
    fit = fit or default_fit(high_res)
    if not high_res:
        return _plain_view(image, size, fit)[None]
    # The published code resizes twice, with different conventions: half-pixel centres first, then aligned
    # corners. All views are rounded to 8 bits, as there.
    pixels = _bilinear(_square(image, fit), 2 * size, _half_pixel)
    return to_bytes(np.concatenate([resize_aligned(pixels[None], size), strided_split(pixels[None])]))


def _plain_view(image: np.ndarray, size: int, fit: str) -> np.ndarray:
    """(H, W, 3) → (S, S, 3), resized with antialiasing, as CLIP's preprocessing does."""
    if fit == "squash":
        return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.LANCZOS))
    return center_crop_resize(_square(image, fit) if fit == "pad" else image, size)


def unit_box(
    box: tuple[float, float, float, float], height: int, width: int, fit: str
) -> tuple[float, float, float, float]:
    """A box of an image in the square that the image towers see: pixels → 0…1 from left and top.

    Args:
      box: (left, top, right, bottom) in pixels of the image.
      height, width: size of the image.
      fit: how the image becomes square, see `reference_views`.

    Returns:
      The box; parts outside 0…1 are cropped away.
    """
    side = {"squash": None, "pad": max(height, width), "crop": min(height, width)}[fit]
    across, down = (side or width, side or height)
    # `_square` centres the image in the square, or the square in the image, at whole pixels.
    left, top = (_centre(width, across), _centre(height, down))
    return (box[0] - left) / across, (box[1] - top) / down, (box[2] - left) / across, (box[3] - top) / down


def _centre(length: int, side: int) -> int:
    """Where a side that is centred on a length begins; negative if the side is longer."""
    return (length - side) // 2 if side <= length else -((side - length) // 2)


def _square(image: np.ndarray, fit: str) -> np.ndarray:
    """The part of an image to resize to a square; the whole image for `fit` "squash"."""
    height, width = image.shape[:2]
    if fit == "squash" or height == width:
        return image
    if fit == "pad":
        side = max(height, width)
        padded = np.full((side, side, image.shape[2]), _WHITE, image.dtype)
        top, left = (side - height) // 2, (side - width) // 2
        padded[top : top + height, left : left + width] = image
        return padded
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[top : top + side, left : left + side]


def resize_aligned(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize with aligned corners, no antialiasing: (B, H, W, C) → (B, size, size, C)."""
    return np.stack([_bilinear(image, size, _aligned_corners) for image in images])


def _half_pixel(source: int, size: int) -> np.ndarray:
    """Positions for pixel centres at ½, 1½, …, clamped to the border (PyTorch's `align_corners=False`)."""
    # float32, because PyTorch computes the positions so, and rounding decides which pixels are neighbours.
    scale = np.float32(source / size)
    return np.maximum((np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0)


def _aligned_corners(source: int, size: int) -> np.ndarray:
    """Positions for which first and last pixels coincide (PyTorch's `align_corners=True`)."""
    return np.arange(size, dtype=np.float32) * np.float32((source - 1) / max(size - 1, 1))


def _bilinear(image: np.ndarray, size: int, places: _Places) -> np.ndarray:
    """Bilinear resize without antialiasing: (H, W, C) → float32 (size, size, C); uint8 is scaled to 0…1."""
    # Reads only the four neighbours of each output pixel, so the cost does not grow with the input.
    unit = np.float32(255 if image.dtype == np.uint8 else 1)
    rows, columns = (_neighbours(places(side, size), side) for side in image.shape[:2])
    (top, bottom, down), (left, right, along) = rows, columns
    down, along = down[:, None, None], along[None, :, None]  # weights of the bottom and the right neighbour

    def row(at: np.ndarray) -> np.ndarray:
        line = image[at]  # (size, W, C)
        return line[:, left] / unit * (np.float32(1) - along) + line[:, right] / unit * along

    return row(top) * (np.float32(1) - down) + row(bottom) * down


def _neighbours(at: np.ndarray, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pixel before each position, the pixel after it, and the weight of the latter."""
    low = np.minimum(at.astype(np.int64), source - 1)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


def strided_split(images: np.ndarray) -> np.ndarray:
    """2×2 strided split: (B, 2H, 2W, C) → (4B, H, W, C), ordered by image, row offset, column offset."""
    b, height, width, c = images.shape
    # (B, H, 2, W, 2, C) → (B, 2, 2, H, W, C) → (4B, H, W, C)
    split = images.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 2, 4, 1, 3, 5)
    return split.reshape(4 * b, height // 2, width // 2, c)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in 0…1 as uint8, truncated instead of rounded, like torchvision's `ToPILImage`."""
    return (np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
