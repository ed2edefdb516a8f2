"""Masks that a user draws: where in the image a subject may act."""

import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.transforms import ImageLike, load_image, read_once


def load_mask(mask: ImageLike) -> np.ndarray:
    """Loads a mask of any size.

    Args:
      mask: an array (H, W) of bool, uint8 or floats in [0, 1], or an image as `load_image` takes it. White is
        where the subject may act; what is transparent counts as black. Of 8 bits with no value above 1, 1 is
        white.

    Returns:
      float32 (H, W) in [0, 1].

    Raises:
      UserError: when it is none of these.
    """
    mask = read_once(mask)
    if isinstance(mask, np.ndarray):
        if mask.ndim == 2 and mask.size and np.issubdtype(mask.dtype, np.floating):
            if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
                raise UserError("the mask is floating point and has values outside [0, 1]")
            return mask.astype(np.float32)  # not through the 8 bits of an image
        mask = mask.astype(np.uint8) * np.uint8(255) if mask.dtype == bool else mask
        return _grey(load_image(mask, "the mask array", background="black"))
    name = "the mask" if isinstance(mask, (bytes, Image.Image)) else None
    return _grey(load_image(mask, name, background="black"))


def _grey(image: np.ndarray) -> np.ndarray:
    if image.max() == 1:  # 0 and 1, as segmentation gives them
        return image.max(axis=-1).astype(np.float32)
    return image.mean(axis=-1, dtype=np.float32) / np.float32(255)


def resize_area(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each pixel of the result is the average of the area that it covers: (H, W) → (height, width).

    Pillow's BOX filter and `reduce` count a pixel that is covered in part as a whole one, or not at all.
    """
    rows, columns = _shares(mask.shape[0], height), _shares(mask.shape[1], width)
    return np.clip(rows @ mask @ columns.T, 0, 1).astype(np.float32)


def _shares(old: int, new: int) -> np.ndarray:
    """(new, old): the share of each old pixel in each new one along a side; rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    begin, end = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    covered = np.minimum(end, pixel + 1) - np.maximum(begin, pixel)
    return np.maximum(covered, 0) * new / old
