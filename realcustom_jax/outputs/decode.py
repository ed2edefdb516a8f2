"""Decodes latents to pixels, and checks that results are finite."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.devices import fill, run_rows
from realcustom_jax.common.errors import UserError
from realcustom_jax.models.family import Models
from realcustom_jax.models.vae import VAE
from realcustom_jax.models.vae_tiles import decode_in_tiles

if TYPE_CHECKING:
    from realcustom_jax.pipeline import Pipeline

# Number of pixels that a device decodes at once: one image of 1024x1024, or four of 512x512.
_DECODED_AT_ONCE = 1024 * 1024


def images_of(pipe: "Pipeline", latents: Array, at_once: int | None = None) -> np.ndarray:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), in slices that bound the memory.

    Args:
      pipe: the model.
      latents: scaled latents.
      at_once: images that a device decodes at once; None for as many as have `_DECODED_AT_ONCE` pixels.

    Raises:
      UserError: if the VAE's output is not finite.
    """
    down = pipe.models.vae_config.downscale
    pixels = latents.shape[1] * latents.shape[2] * down * down
    devices = 1 if pipe.mesh is None else pipe.mesh.size
    # −(−a // b) rounds up. Slices are of equal size and the last is padded, so one program decodes all of
    # them.
    at_once = at_once or max(1, _DECODED_AT_ONCE // pixels)
    slices = -(-len(latents) // (devices * at_once))
    rows = -(-len(latents) // slices)
    padded = fill(latents, slices * rows - len(latents))
    params = {"vae": pipe.params["vae"]}
    # `device_get` moves each slice to the host before the next begins.
    parts = [
        jax.device_get(run_rows(pipe.mesh, decode_rows, pipe.models, params, padded[start : start + rows]))
        for start in range(0, len(padded), rows)
    ]
    images, finite = (np.concatenate(part)[: len(latents)] for part in zip(*parts, strict=True))
    check_finite(finite)
    return images


def decode(models: Models, params: Any, latents: Array) -> Array:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), large images in tiles.

    Pure: it can run inside a caller's jit.

    Args:
      models: the configs; static.
      params: parameters of the VAE.
      latents: scaled latents.
    """
    return _to_bytes(_decoded(models, params, latents))


def _decoded(models: Models, params: Any, latents: Array) -> Array:
    """Images (B, H, W, 3) float32, roughly in [-1, 1]."""

    def apply(latents: Array) -> Array:
        images: Any = models.vae.apply({"params": params}, latents, method=VAE.decode)
        return images

    return decode_in_tiles(apply, latents, models.vae_config.downscale)


def _to_bytes(images: Array) -> Array:
    # rounded instead of truncated: then uint8 → [-1, 1] → uint8 is exact
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def decode_rows(models: Models, params: Any, latents: Array) -> tuple[Array, Array]:
    """Program of `images_of`: latents (n, h, w, C) → uint8 images (n, H, W, 3), finite flags (n,)."""
    # The check must come before the conversion: uint8 has no NaN.
    images = _decoded(models, params["vae"], latents)
    return _to_bytes(images), finite_rows(images)


def finite_rows(x: Array) -> Array:
    """Whether all numbers of each row are finite: (B, …) → bool (B,)."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def check_finite(finite: Array | np.ndarray) -> None:
    """Check the result of `finite_rows`, bool (B,).

    Raises:
      UserError: if a row is not finite; the message names its index.
    """
    # Without this check, NaN would silently become a black image.
    if not np.asarray(finite).all():
        bad = ", ".join(str(i) for i in np.flatnonzero(~np.asarray(finite)))
        raise UserError(
            f"the result of request {bad} is not finite: the weights contain NaN or infinity, or an "
            "option or a strength is too large"
        )
