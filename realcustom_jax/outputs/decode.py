"""From latents to pixels, and the check that a result is finite."""

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

# Pixels of the images that a device decodes at once.
_DECODED_AT_ONCE = 1024 * 1024


def images_of(pipe: "Pipeline", latents: Array) -> np.ndarray:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), so many at once that memory stays bounded.

    Several slices are equal, the last filled up: one program decodes them all.

    Raises:
      UserError: where the VAE gives what is not finite.
    """
    down = pipe.models.vae_config.downscale
    pixels = latents.shape[1] * latents.shape[2] * down * down
    devices = 1 if pipe.mesh is None else pipe.mesh.size
    slices = -(-len(latents) // (devices * max(1, _DECODED_AT_ONCE // pixels)))
    rows = -(-len(latents) // slices)
    filled = fill(latents, slices * rows - len(latents))
    params = {"vae": pipe.params["vae"]}
    parts = [
        jax.device_get(run_rows(pipe.mesh, decode_rows, pipe.models, params, filled[start : start + rows]))
        for start in range(0, len(filled), rows)
    ]
    images, finite = (np.concatenate(part)[: len(latents)] for part in zip(*parts, strict=True))
    check_finite(finite)
    return images


def decode(models: Models, params: Any, latents: Array) -> Array:
    """Latents (B, h, w, C) → uint8 images (B, H, W, 3), large ones in tiles. Pure; `params` are the VAE's."""
    return _to_bytes(_decoded(models, params, latents))


def _decoded(models: Models, params: Any, latents: Array) -> Array:
    """Images (B, H, W, 3) in [-1, 1]."""

    def apply(latents: Array) -> Array:
        return models.vae.apply({"params": params}, latents, method=VAE.decode)

    return decode_in_tiles(apply, latents, models.vae_config.downscale)


def _to_bytes(images: Array) -> Array:
    return jnp.round(jnp.clip(images * 0.5 + 0.5, 0.0, 1.0) * 255.0).astype(jnp.uint8)


def decode_rows(models: Models, params: Any, latents: Array) -> tuple[Array, Array]:
    images = _decoded(models, params["vae"], latents)
    return _to_bytes(images), finite_rows(images)


def finite_rows(x: Array) -> Array:
    """(B,) whether all numbers of a row (B, …) are finite."""
    return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def check_finite(finite: Array | np.ndarray) -> None:
    """Raises `UserError` where an image would be black: `finite` are the `finite_rows` of its numbers."""
    if not np.asarray(finite).all():
        bad = ", ".join(str(i) for i in np.flatnonzero(~np.asarray(finite)))
        raise UserError(
            f"the result of request {bad} is not finite: the weights contain NaN or infinity, or an "
            "option or a strength is too large"
        )
