"""User-drawn masks: the areas of the image where a subject may act."""

import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.transforms import ImageLike, load_image, read_once


def load_mask(mask: ImageLike) -> np.ndarray:
    """Load a mask of any size.

    Args:
      mask: an array (H, W) of bool, uint8 or floats in [0, 1], or any image that `load_image` accepts. The
        subject may act where the mask is white. Transparent pixels count as black. In 8-bit masks without
        values above 1, the value 1 is white.

    Returns:
      float32 (H, W) in [0, 1].

    Raises:
      UserError: if `mask` has another form.
    """
    mask = read_once(mask)
    if isinstance(mask, np.ndarray):
        if mask.ndim == 2 and mask.size and np.issubdtype(mask.dtype, np.floating):
            if not (np.isfinite(mask).all() and mask.min() >= 0 and mask.max() <= 1):
                raise UserError("the mask is floating point and has values outside [0, 1]")
            return mask.astype(np.float32)  # without rounding to 8 bits
        mask = mask.astype(np.uint8) * np.uint8(255) if mask.dtype == bool else mask
        return _grey(load_image(mask, "the mask array", background="black"))
    name = "the mask" if isinstance(mask, (bytes, Image.Image)) else None
    return _grey(load_image(mask, name, background="black"))


def _grey(image: np.ndarray) -> np.ndarray:
    if image.max() == 1:  # 0 and 1, as from segmentation models
        return image.max(axis=-1).astype(np.float32)
    return image.mean(axis=-1, dtype=np.float32) / np.float32(255)


def resize_area(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize by area averaging: (H, W) → (height, width).

    Pillow's BOX filter and `reduce` count a partly covered pixel fully or not at all.
    """
    rows, columns = _shares(mask.shape[0], height), _shares(mask.shape[1], width)
    return np.clip(rows @ mask @ columns.T, 0, 1).astype(np.float32)


def _shares(old: int, new: int) -> np.ndarray:
    """Share of each old pixel in each new pixel along one side: (new, old); rows sum to 1."""
    edges = np.linspace(0, old, new + 1)
    begin, end = edges[:-1, None], edges[1:, None]
    pixel = np.arange(old)
    covered = np.minimum(end, pixel + 1) - np.maximum(begin, pixel)
    return np.maximum(covered, 0) * new / old
