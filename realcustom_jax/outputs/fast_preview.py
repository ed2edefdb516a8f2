"""Fast previews: a linear map from latents to colours, one pixel per latent, without the VAE's decoder.

The colour of a latent is nearly a linear function of its channels. The map is fitted to each model's own VAE,
so it needs no table of known bases.
"""

import dataclasses
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.models.resize import resize_mask
from realcustom_jax.outputs.decode import images_of

if TYPE_CHECKING:
    from realcustom_jax.pipeline import Pipeline

# Random latents that are decoded for the fit: number, side, side before the enlargement that makes them
# smooth, and standard deviation. Latents have about 1; the toybox's previews are best with a little more.
_COUNT, _SIDE, _COARSE, _STD = 4, 16, 4, 1.5


@dataclasses.dataclass(frozen=True)
class LinearDecoder:
    """Latents → small images.

    Attributes:
      matrix: (C + 1, 3), one row per latent channel, and the offset last; colours are 0 … 255.
    """

    matrix: np.ndarray

    def __call__(self, latents: Array | np.ndarray) -> np.ndarray:
        """Scaled latents (B, h, w, C) → uint8 images (B, h, w, 3)."""
        colours = np.asarray(latents, np.float32) @ self.matrix[:-1] + self.matrix[-1]
        return np.round(np.clip(colours, 0.0, 255.0)).astype(np.uint8)


def linear_decoder(pipe: "Pipeline") -> LinearDecoder:
    """The decoder of a pipeline, fitted at its first use. The VAE decodes four small images for that.

    Raises:
      UserError: if the VAE's output is not finite.
    """
    if "linear_decoder" not in pipe.cache:
        channels, down = pipe.models.vae_config.latent_channels, pipe.models.vae_config.downscale
        latents = _smooth_noise(channels)
        # one at a time: a model with latents of this size, the toybox, decodes its results with this program
        images = images_of(pipe, latents, at_once=1).astype(np.float32)
        # mean colour of each latent's pixels: (n, h·d, w·d, 3) → (n, h, w, 3)
        colours = images.reshape(_COUNT, _SIDE, down, _SIDE, down, 3).mean(axis=(2, 4))
        rows = np.asarray(latents).reshape(-1, channels)
        rows = np.concatenate([rows, np.ones((len(rows), 1), np.float32)], axis=1)
        pipe.cache["linear_decoder"] = LinearDecoder(np.linalg.lstsq(rows, colours.reshape(-1, 3))[0])
    return pipe.cache["linear_decoder"]


def _smooth_noise(channels: int) -> Array:
    """The latents of the fit, always the same: (n, h, w, C)."""
    coarse = np.random.default_rng(0).standard_normal((_COUNT, channels, _COARSE, _COARSE))
    # (n, C, 4, 4) → (n, C, h, w) → (n, h, w, C)
    smooth = jnp.moveaxis(resize_mask(jnp.asarray(coarse, jnp.float32), _SIDE, _SIDE), 1, -1)
    return smooth * (_STD / smooth.std())
