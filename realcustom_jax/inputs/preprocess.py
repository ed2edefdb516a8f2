"""Image preprocessing of published evaluations, reproduced to the pixel."""

import dataclasses

import numpy as np
from PIL import Image

from realcustom_jax.common.pixels import to_signed


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resizes the short side (PIL's bicubic, in uint8), then crops the centre.

    The towers themselves normalise by mean and standard deviation.

    Attributes:
      short_side: length of the short side after resizing, in pixels; the long side is rounded down.
      crop: side of the square crop, in pixels.
      round_up: how an odd margin is halved: rounded to the even number (torchvision) if True, rounded down
        (transformers) if False.
    """

    short_side: int
    crop: int
    round_up: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → float32 (crop, crop, 3) in [-1, 1]."""
        return to_signed(self._cropped(self._resized(image)))

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        short = min(height, width)
        if short == self.short_side:  # resampling would blur it
            return image
        height, width = (self.short_side * side // short for side in (height, width))
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        margins = [side - self.crop for side in image.shape[:2]]
        top, left = (round(m / 2) if self.round_up else m // 2 for m in margins)
        return image[top : top + self.crop, left : left + self.crop]


# transformers' CLIPImageProcessor with the settings of openai/clip-vit-base-patch32.
CLIP = Preprocess(224, 224)
# DINO's own evaluation, also used by DreamBooth and later papers: Resize(256, bicubic), CenterCrop(224).
DINO = Preprocess(256, 224, round_up=True)


def segment(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Put the subject on a white background.

    Args:
      image: uint8 (H, W, 3).
      mask: (H, W), above 0 at the subject's pixels.

    Returns:
      uint8 (H, W, 3).
    """
    return np.where(mask[..., None] > 0, image, np.uint8(255))
