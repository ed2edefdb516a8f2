"""Limits of what a user of the page may ask of the machine that all users share."""

from collections.abc import Mapping
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.sizes import image_size
from realcustom_jax.pipeline import Pipeline

# Most pixels of an image, relative to the model's own: attention needs memory with their square.
_LARGEST = 4


def check_size(pipe: Pipeline, options: Mapping[str, Any]) -> None:
    """Check the size of images before anything is made.

    Args:
      pipe: the model.
      options: sampling options that differ from the model's defaults.

    Raises:
      UserError: for an image that is too large for the page, and for options that the model refuses.
    """
    height, width = image_size(pipe.models, pipe.defaults)
    most = _LARGEST * height * width
    height, width = image_size(pipe.models, pipe.defaults.changed(options))
    if height * width > most:
        raise UserError(
            f"an image of {width}x{height} pixels is too large for the studio: at most {most} pixels"
        )
