"""RealCustom++'s views of a reference image: the whole at the towers' size, and its detail at twice that.

As the published inference makes them, with `to_bytes` before the towers see them. numpy, for loaders.
"""

import numpy as np


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


def interleave_local(features: np.ndarray) -> np.ndarray:
    """Features of the local views (4B, N, C) → (B, 4N, C), the four of each global patch side by side."""
    four_b, n, c = features.shape
    return features.reshape(four_b // 4, 4, n, c).swapaxes(1, 2).reshape(four_b // 4, 4 * n, c)
