"""What the field's evaluations do to an image before a tower sees it, to the pixel."""

import dataclasses

import numpy as np
from PIL import Image

from realcustom_jax.inputs.transforms import to_float


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resize the short side (PIL's bicubic, in uint8), then cut out the centre.

    The towers normalise by themselves, with CLIP's mean and deviation or ImageNet's.

    Attributes:
      short_side: pixels; the long side is scaled alike and rounded down.
      crop: side of the square.
      round_up: where the margin is odd, whether half a pixel may be rounded up (torchvision, to the even
        number) or is always rounded down (transformers).
    """

    short_side: int
    crop: int
    round_up: bool = False

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """uint8 (H, W, 3) → float32 (crop, crop, 3) in [-1, 1]."""
        return to_float(self._cropped(self._resized(image)))

    def _resized(self, image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        short = min(height, width)
        if short == self.short_side:
            return image
        height, width = (self.short_side * side // short for side in (height, width))
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        margins = [side - self.crop for side in image.shape[:2]]
        top, left = (round(m / 2) if self.round_up else m // 2 for m in margins)
        return image[top : top + self.crop, left : left + self.crop]


# transformers' CLIPImageProcessor with the settings of openai/clip-vit-base-patch32.
CLIP = Preprocess(224, 224)
# DINO's own evaluation, which DreamBooth's and later ones keep: Resize(256, bicubic), CenterCrop(224).
DINO = Preprocess(256, 224, round_up=True)


def segment(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The subject on white.

    Args:
      image: uint8 (H, W, 3).
      mask: (H, W), the subject where it is above 0.

    Returns:
      uint8 (H, W, 3).
    """
    return np.where(mask[..., None] > 0, image, np.uint8(255))
