"""Tiled decoding: decodes latents of any size in bounded memory, large ones in overlapping tiles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Side of a tile in latents: 1024 pixels with a downscale of 8, the size that SDXL's VAE was trained on.
TILE = 128
# Overlap of neighbouring tiles, in latents. It is wide, because group normalisation averages over a tile: the
# colours of two tiles differ slightly, and a wide blend hides it.
OVERLAP = 32


def decode_in_tiles(
    decode: Callable[[Array], Array], latents: Array, downscale: int, tile: int = TILE, overlap: int = OVERLAP
) -> Array:
    """Decode latents, in overlapping tiles if they have more pixels than one tile.

    Neighbouring tiles are blended linearly in their overlap.

    Args:
      decode: latents (B, h, w, C) → images (B, h·d, w·d, 3).
      latents: (B, h, w, C).
      downscale: d, pixels per latent along one side.
      tile: side of a tile, in latents.
      overlap: minimum overlap of two neighbours, in latents.

    Returns:
      float32 (B, h·d, w·d, 3).
    """
    batch, height, width, _ = latents.shape
    # Memory depends on the area: a long, narrow image of one tile's area is decoded whole.
    if height * width <= tile * tile:
        return decode(latents)
    sides = [min(side, tile) for side in (height, width)]
    starts = [_starts(length, side, overlap) for length, side in zip((height, width), sides, strict=True)]
    # (tiles, 2): the top left corner of each tile, in latents
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    # (H_tile, 1, 1)·(1, W_tile, 1) → (H_tile, W_tile, 1): blending weights of a tile, in pixels
    window = (
        _window(sides[0] * downscale, overlap * downscale)[:, None, None]
        * (_window(sides[1] * downscale, overlap * downscale)[None, :, None])
    )

    # The weighted sum of images, and the sum of weights; their quotient is the blended image.
    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        top, left = jnp.asarray(corners)[i]
        part = jax.lax.dynamic_slice(latents, (0, top, left, 0), (batch, *sides, latents.shape[-1]))
        image, weight = decode(part) * window, jnp.asarray(window)[None]
        place = (0, top * downscale, left * downscale, 0)
        image, weight = (
            jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, place, new.shape) + new, place)
            for total, new in zip(sums, (image, weight), strict=True)
        )
        return image, weight

    shape = (height * downscale, width * downscale)
    zeros = (jnp.zeros((batch, *shape, 3), jnp.float32), jnp.zeros((1, *shape, 1), jnp.float32))
    # A loop instead of a batch of tiles: one tile's activations are in memory at a time.
    image, weight = jax.lax.fori_loop(0, len(corners), add, zeros)
    return image / weight


def _starts(length: int, side: int, overlap: int) -> np.ndarray:
    """Start positions of evenly spaced tiles that cover a length; neighbours overlap by `overlap` or more."""
    count = 1 if length <= side else -(-(length - overlap) // (side - overlap))
    return np.round(np.linspace(0, length - side, count)).astype(np.int32)


def _window(side: int, overlap: int) -> np.ndarray:
    """Weights along one side of a tile: 1 in the middle, falling linearly within the overlap."""
    # Half a pixel from the border, so that no weight is 0: at the image's border only one tile counts.
    ramp = np.minimum((np.arange(side) + 0.5) / overlap, 1.0)
    return np.minimum(ramp, ramp[::-1]).astype(np.float32)
