"""`Inspection`: an image with the word maps, masks and visual tokens of its steps, and their pictures."""

import dataclasses

import numpy as np
from PIL import Image

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs.token_grid import TokenGrid
from realcustom_jax.outputs.samples import Samples

_LONGER_SIDE = 512  # of the pictures, in pixels
_HEAT = (255, 64, 0)  # colour of a word map's maximum
_PALE, _DARK = 255, 24  # around a mask, and instead of visual tokens that do not act


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Inspection:
    """How the target words of one image were narrowed.

    Attributes:
      customized: the image, as `sample` makes it.
      text_only: the image of the same prompt and seed without subjects.
      word_maps: (steps, R, h, w) float32, at most 1: where the image attends to the target words of each
        subject, averaged over layers and normalised. A step that reuses masks repeats the last one.
      masks: (steps, R, h, w) float32, the influence scopes, cut out of the word maps.
      kept: (steps, R, N) bool, the visual tokens that act; None if the model, or `scoring`, scores no tokens.
      grid: the patch that each of the N tokens belongs to.
      references: for each subject its photos as the image towers see them, uint8 (S, S, 3).
    """

    customized: Samples
    text_only: Samples
    word_maps: np.ndarray
    masks: np.ndarray
    kept: np.ndarray | None
    grid: TokenGrid
    references: tuple[tuple[np.ndarray, ...], ...]

    def __repr__(self) -> str:
        steps, slots, height, width = self.word_maps.shape
        tokens = "no scores" if self.kept is None else f"{self.kept.shape[-1]} visual tokens each"
        words = "; ".join(", ".join(words) for words in self.customized.words[0])
        return f"Inspection({words}: {steps} steps, {slots} subjects, maps of {height}x{width}, {tokens})"

    def draw_word_map(self, step: int, subject: int = 0) -> Image.Image:
        """The word map of a step, from its minimum to its maximum, in red over the image in grey."""
        step, subject = self._indices(step, subject)
        base = _enlarged(self.customized.images[0])
        grey = np.repeat(base.mean(axis=-1, keepdims=True), 3, axis=-1)
        # Refined maps are nearly flat, and would be red everywhere.
        values = self.word_maps[step, subject]
        share = (values - values.min()) / max(float(np.ptp(values)), 1e-6)
        return _blend(grey, np.asarray(_HEAT, np.float32), 0.8 * _share(share, base))

    def draw_mask(self, step: int, subject: int = 0) -> Image.Image:
        """The image inside the mask of a step; pale outside."""
        step, subject = self._indices(step, subject)
        base = _enlarged(self.customized.images[0])
        outside = 1.0 - _share(self.masks[step, subject], base)
        return _blend(base, np.full(3, _PALE, np.float32), 0.85 * outside)

    def draw_tokens(self, step: int, subject: int = 0, photo: int = 0) -> Image.Image:
        """A reference photo with the patches lit whose visual tokens act in a step; all without scores.

        Raises:
          UserError: for a step, subject or photo that does not exist.
        """
        step, subject = self._indices(step, subject)
        photos = self.references[subject]
        if not 0 <= photo < len(photos):
            raise UserError(f"there is no photo {photo}; subject {subject} has {len(photos)}, from 0")
        base = _enlarged(photos[photo])
        if self.kept is None:
            return _blend(base, base, np.zeros((*base.shape[:2], 1), np.float32))
        lit = self.grid.patches(self.kept[step, subject])[photo]
        return _blend(
            base, np.full(3, _DARK, np.float32), 0.8 * (1.0 - _share(lit, base, Image.Resampling.NEAREST))
        )

    def _indices(self, step: int, subject: int) -> tuple[int, int]:
        """The arguments, checked; a negative step counts from the end."""
        steps, slots = self.word_maps.shape[:2]
        if not -steps <= step < steps:
            raise UserError(f"there is no step {step}; the image has {steps}, from 0")
        if not 0 <= subject < slots:
            raise UserError(f"there is no subject {subject}; the image has {slots}, from 0")
        return step, subject


def _enlarged(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) → float32, with a longer side of `_LONGER_SIDE`."""
    height, width = image.shape[:2]
    scale = _LONGER_SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # The toybox's small images stay sharp.
    method = Image.Resampling.NEAREST if scale >= 4 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(image).resize(size, method), np.float32)


def _share(
    values: np.ndarray, base: np.ndarray, method: Image.Resampling = Image.Resampling.BILINEAR
) -> np.ndarray:
    """Values (h, w), clipped to 0…1 and resized to the picture `base` (H, W, 3): (H, W, 1)."""
    clipped = Image.fromarray(np.clip(values, 0.0, 1.0).astype(np.float32))
    return np.asarray(clipped.resize((base.shape[1], base.shape[0]), method))[..., None]


def _blend(base: np.ndarray, over: np.ndarray, share: np.ndarray) -> Image.Image:
    """(1 − share) · base + share · over, as a picture; arrays broadcast to (H, W, 3)."""
    return Image.fromarray(np.round((1.0 - share) * base + share * over).clip(0, 255).astype(np.uint8))
