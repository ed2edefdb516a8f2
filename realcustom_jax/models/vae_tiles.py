"""Decoding latents of any size in bounded memory: large ones in overlapping tiles."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

# Side of a tile in latents: 1024 pixels of a VAE that shrinks by 8, what SDXL's was trained on.
TILE = 128
# Of neighbouring tiles, in latents. Group normalisation makes a tile's colours depend on all of it.
OVERLAP = 32


def decode_in_tiles(
    decode: Callable[[Array], Array], latents: Array, downscale: int, tile: int = TILE, overlap: int = OVERLAP
) -> Array:
    """Images of latents, in tiles where these have more pixels than one.

    Neighbouring tiles are blended linearly where they overlap. Latents that fit one tile are decoded whole.

    Args:
      decode: latents (B, h, w, C) → images (B, h·d, w·d, 3).
      latents: (B, h, w, C).
      downscale: d, pixels by latent along one side.
      tile: side of a tile, in latents.
      overlap: the least overlap of two neighbours, in latents.

    Returns:
      float32 (B, h·d, w·d, 3).
    """
    batch, height, width, _ = latents.shape
    if height * width <= tile * tile:
        return decode(latents)
    sides = [min(side, tile) for side in (height, width)]
    starts = [_starts(length, side, overlap) for length, side in zip((height, width), sides, strict=True)]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1).reshape(-1, 2)
    window = (
        _window(sides[0] * downscale, overlap * downscale)[:, None, None]
        * (_window(sides[1] * downscale, overlap * downscale)[None, :, None])
    )

    def add(i: Array, sums: tuple[Array, Array]) -> tuple[Array, Array]:
        top, left = jnp.asarray(corners)[i]
        part = jax.lax.dynamic_slice(latents, (0, top, left, 0), (batch, *sides, latents.shape[-1]))
        image, weight = decode(part) * window, jnp.asarray(window)[None]
        place = (0, top * downscale, left * downscale, 0)
        return tuple(
            jax.lax.dynamic_update_slice(total, jax.lax.dynamic_slice(total, place, new.shape) + new, place)
            for total, new in zip(sums, (image, weight), strict=True)
        )

    shape = (height * downscale, width * downscale)
    zeros = (jnp.zeros((batch, *shape, 3), jnp.float32), jnp.zeros((1, *shape, 1), jnp.float32))
    image, weight = jax.lax.fori_loop(0, len(corners), add, zeros)
    return image / weight


def _starts(length: int, side: int, overlap: int) -> np.ndarray:
    """Where tiles begin so that they cover a length, evenly, neighbours sharing `overlap` or more."""
    count = 1 if length <= side else -(-(length - overlap) // (side - overlap))
    return np.round(np.linspace(0, length - side, count)).astype(np.int32)


def _window(side: int, overlap: int) -> np.ndarray:
    """Weights along one side of a tile: 1 in the middle, falling linearly within the overlap."""
    ramp = np.minimum((np.arange(side) + 0.5) / overlap, 1.0)
    return np.minimum(ramp, ramp[::-1]).astype(np.float32)
