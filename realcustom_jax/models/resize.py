"""Resizing masks and word maps to the grid of a block."""

import jax
import jax.numpy as jnp
from jax import Array


def resize_mask(mask: Array, height: int, width: int) -> Array:
    """Bilinear, half-pixel centres, no antialiasing (PyTorch's `F.interpolate`): (…, h', w') → (…, h, w)."""
    if mask.shape[-2:] == (1, 1):
        return jnp.broadcast_to(mask, (*mask.shape[:-2], height, width))
    return jax.image.resize(mask, (*mask.shape[:-2], height, width), "bilinear", antialias=False)
