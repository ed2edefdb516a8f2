"""Image, latent and mask sizes of a request."""

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.family import Models
from realcustom_jax.options import SamplingOptions


def latent_size(models: Models, height: int | None, width: int | None) -> tuple[int, int]:
    """Latent height and width for an image size in pixels; None for the model's own size.

    Raises:
      UserError: if the size cannot be halved as often as VAE and UNet need.
    """
    down = models.vae_config.downscale
    # The VAE halves pixels, then the UNet halves latents.
    multiple = down * models.unet_config.divisor
    sizes = []
    for name, size in (("height", height), ("width", width)):
        size = models.unet_config.sample_size * down if size is None else size
        if size < multiple or size % multiple:
            raise UserError(
                f"the {name} of {size} pixels cannot be halved as often as the model needs: "
                f"use a multiple of {multiple}"
            )
        sizes.append(size // down)
    return sizes[0], sizes[1]


def image_size(models: Models, options: SamplingOptions) -> tuple[int, int]:
    """Height and width of the images in pixels."""
    down = models.vae_config.downscale
    height, width = latent_size(models, options.height, options.width)
    return height * down, width * down


def mask_grid(models: Models, options: SamplingOptions) -> tuple[int, int]:
    """Height and width of the masks in mask pixels."""
    config = options.sampler_config(*latent_size(models, options.height, options.width))
    return config.mask_height, config.mask_width
