"""The value range of pixels, without JAX: the loader's workers use it too."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from jax import Array

Pixels = TypeVar("Pixels", np.ndarray, "Array")


def to_signed(images: Pixels) -> Pixels:
    """uint8 [0, 255] → float32 [-1, 1], same shape; the range of the VAE and the image towers."""
    return images.astype(np.float32) / np.float32(127.5) - np.float32(1)
