"""Hints about a reference image: what may make a subject hard to copy, with the number that says so."""

import dataclasses

import numpy as np
from PIL import Image

from realcustom_jax.inputs.transforms import ImageLike, load_image

# The longer side at which images are judged, so that the numbers do not depend on the resolution.
_SIDE = 256
# Width of the border that is taken for the background, as a share of the shorter side.
_BORDER = 0.06
# A pixel is the subject's if one of its colours differs from the background by more than this, of 255.
_DIFFERENT = 40.0

BUSY = 25.0  # mean difference of the border from its own median, of 255
SMALL = 0.08  # share of the image that the subject covers
BLURRED = 3.0  # mean strength of the sharpest tenth of the edges, of 255


@dataclasses.dataclass(frozen=True)
class Hint:
    """One hint.

    Attributes:
      text: what is wrong and what helps, in one sentence.
      measure: what was measured.
      value: the number.
      limit: the number from which on it is a hint.
    """

    text: str
    measure: str
    value: float
    limit: float

    def __str__(self) -> str:
        return f"{self.text} ({self.measure} {self.value:.3g}, limit {self.limit:g})"


def reference_hints(image: ImageLike, tower_size: int | None = None) -> list[Hint]:
    """Hints about a reference image; none for a large, sharp subject on a plain background.

    Args:
      image: as in `Subject`.
      tower_size: side of the image towers' input in pixels, to judge the resolution; None to leave that out.
    """
    photo = Image.fromarray(load_image(image))
    hints = []
    if tower_size is not None and min(photo.size) < tower_size / 2:
        hints.append(
            Hint("the image is small: details are missing", "shorter side", min(photo.size), tower_size / 2)
        )
    busy, share, edges = _measures(photo)
    if busy > BUSY:
        hints.append(
            Hint(
                "the background is busy and may be copied too: cut the subject out, or take a plainer one",
                "difference of the border from one colour", busy, BUSY,
            )
        )  # fmt: skip
    elif share < SMALL:
        hints.append(Hint("the subject is small: crop the image", "share of the image", share, SMALL))
    if edges < BLURRED:
        hints.append(Hint("the image is blurred", "strength of its edges", edges, BLURRED))
    return hints


def _measures(photo: Image.Image) -> tuple[float, float, float]:
    """Unrest of the border, share of the image that differs from it, strength of the sharpest edges."""
    photo = photo.copy()
    photo.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(photo, np.float32)
    height, width, _ = pixels.shape
    border = max(1, round(min(height, width) * _BORDER))
    inner = np.zeros((height, width), bool)
    inner[border : -border or None, border : -border or None] = True
    background = pixels[~inner] if (~inner).any() else pixels.reshape(-1, 3)
    difference = np.abs(pixels - np.median(background, axis=0)).max(axis=-1)
    busy = float(np.abs(background - np.median(background, axis=0)).max(axis=-1).mean())
    # A Laplacian responds to edges but ignores slow changes of light.
    grey = pixels.mean(axis=-1)
    padded = np.pad(grey, 1, mode="edge")
    around = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]) / 4
    edges = np.sort(np.abs(grey - around), axis=None)
    sharpest = edges[-max(1, edges.size // 10) :]
    return busy, float((difference > _DIFFERENT).mean()), float(sharpest.mean())
