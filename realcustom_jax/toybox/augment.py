"""Augmentation that makes drawn images look like generated ones: soft, and with slight errors.

The judge and the recogniser are trained on drawn images but also see generated ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def soften(images: Array, key: Array, strength: float = 1.0) -> Array:
    """Blur images, remove detail, add blotches and change the exposure, each by a random amount.

    Args:
      images: (B, H, W, 3) in [-1, 1].
      key: random key of the batch.
      strength: scale of all amounts; 0 leaves the images unchanged.

    Returns:
      (B, H, W, 3) in [-1, 1].
    """
    count, height, width, _ = images.shape
    k_blur, k_detail, k_blotch, k_amount, k_exposure = jax.random.split(key, 5)

    def amount(key: Array, high: float) -> Array:
        return strength * jax.random.uniform(key, (count, 1, 1, 1), maxval=high)

    x = blur(images, amount(k_blur, 1.1)[:, 0, 0, 0])
    # A VAE loses detail below two pixels first. (B, H, W, 3) → mean over 2×2 pixels → back to full size.
    small = x.reshape(count, height // 2, 2, width // 2, 2, 3).mean(axis=(2, 4))
    coarse = jax.image.resize(small, x.shape, "linear")
    x = x + amount(k_detail, 0.8) * (coarse - x)
    # Low-frequency noise, like the errors of a denoiser.
    blotches = jax.random.normal(k_blotch, (count, height // 4, width // 4, 3))
    x = x + amount(k_amount, 0.15) * jax.image.resize(blotches, x.shape, "linear")
    # A gain for the whole image, a shift for each colour channel.
    gain, shift = jax.random.split(k_exposure)
    gain = 1.0 + strength * 0.12 * jax.random.uniform(gain, (count, 1, 1, 1), minval=-1)
    shift = strength * 0.08 * jax.random.uniform(shift, (count, 1, 1, 3), minval=-1)
    return jnp.clip(gain * x + shift, -1.0, 1.0)


def blur(images: Array, sigma: Array) -> Array:
    """Gaussian blur of images (B, H, W, C), with one sigma (B,) in pixels per image and repeated edges."""
    # One kernel per image, so not a convolution: a weighted sum of 7 shifted copies, along each axis.
    offsets = jnp.arange(-3, 4, dtype=jnp.float32)
    weights = jnp.exp(-0.5 * jnp.square(offsets / jnp.maximum(sigma, 1e-3)[:, None]))
    weights = weights / weights.sum(axis=1, keepdims=True)
    for axis in (1, 2):
        padding = [(3, 3) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(images, padding, mode="edge")
        size = images.shape[axis]
        blurred: Any = sum(  # for the type checker, a sum may also be 0
            weights[:, i, None, None, None] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis)
            for i in range(7)
        )
        images = blurred
    return images
