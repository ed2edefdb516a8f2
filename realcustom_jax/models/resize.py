"""Resizing of masks and word maps to the grid of a block."""

import jax
import jax.numpy as jnp
from jax import Array


def resize_mask(mask: Array, height: int, width: int) -> Array:
    """Resize bilinearly: (…, h', w') → (…, h, w), half-pixel centres, no antialiasing.

    This is PyTorch's `F.interpolate(mode="bilinear")`, which the published code uses.
    """
    # A constant mask needs no resize operation in the program.
    if mask.shape[-2:] == (1, 1):
        return jnp.broadcast_to(mask, (*mask.shape[:-2], height, width))
    return jax.image.resize(mask, (*mask.shape[:-2], height, width), "bilinear", antialias=False)
