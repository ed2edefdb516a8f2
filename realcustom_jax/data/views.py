"""RealCustom++'s views of a reference image: the whole at the towers' size, and its detail at twice that.

As the published inference makes them, with `to_bytes` before the towers see them. numpy, for loaders.
"""

import numpy as np

from realcustom_jax.data.transforms import center_crop_resize


def reference_views(image: np.ndarray, size: int, high_res: bool) -> np.ndarray:
    """What the image towers see of a reference image.

    Args:
      image: uint8 (H, W, 3); its largest centred square is used.
      size: side of the towers' input in pixels.
      high_res: RealCustom++'s five views, all made from the image at twice the size, instead of one.

    Returns:
      uint8 (V, size, size, 3): the whole and, if `high_res`, the 2×2 strided split.
    """
    if not high_res:
        return center_crop_resize(image, size)[None]
    pixels = center_crop_resize(image, 2 * size)[None].astype(np.float32) / np.float32(255)
    return to_bytes(np.concatenate([resize_aligned(pixels, size), strided_split(pixels)]))


def resize_aligned(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear with aligned corners (corner pixels keep their centres), no antialiasing; (B, H, W, C)."""

    def weights(source: int) -> np.ndarray:  # (size, source)
        at = np.arange(size) * ((source - 1) / max(size - 1, 1))
        low = np.minimum(np.floor(at).astype(int), max(source - 2, 0))
        matrix = np.zeros((size, source))
        matrix[np.arange(size), low] += 1.0 - (at - low)
        matrix[np.arange(size), np.minimum(low + 1, source - 1)] += at - low
        return matrix

    rows, columns = weights(images.shape[1]), weights(images.shape[2])
    return np.einsum("yh,bhwc,xw->byxc", rows, images, columns).astype(np.float32)


def strided_split(images: np.ndarray) -> np.ndarray:
    """The 2×2 strided split: (B, 2H, 2W, C) → (4B, H, W, C), by image, row offset, column offset."""
    b, height, width, c = images.shape
    split = images.reshape(b, height // 2, 2, width // 2, 2, c).transpose(0, 2, 4, 1, 3, 5)
    return split.reshape(4 * b, height // 2, width // 2, c)


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in 0…1 as uint8, truncated and not rounded."""
    return (np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
