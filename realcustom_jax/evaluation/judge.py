"""The judge of the toybox benchmark: a small network that plays no part in making images.

From a 64×64 image it predicts the background and the region of the subject. From the cut-out subject it
predicts the word and a direction, a unit vector that distinguishes identities of the same word. It is trained
on drawn scenes with exact labels (`train_judge`).
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.common.chunks import in_chunks
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.layers import Conv, Dense, GroupNorm
from realcustom_jax.toybox import BACKGROUNDS, WORDS
from realcustom_jax.weights.components import on_device, read_params, write_params
from realcustom_jax.weights.layouts import DIFFUSERS
from realcustom_jax.weights.tensors import open_tensors

SIZE = 64  # side of the images in pixels
CROP = 48  # side of the cut-out subject in pixels
SHIPPED = Path(__file__).parent / "judge" / "model.safetensors"


@flax.struct.dataclass
class View:
    """Predictions for whole images.

    Attributes:
      backgrounds: (B, 13) logits, in the order of `toybox.BACKGROUNDS`.
      region: (B, 64, 64) logits, positive inside the subject.
    """

    backgrounds: Array
    region: Array


@flax.struct.dataclass
class Look:
    """Predictions for cut-out subjects.

    Attributes:
      words: (B, 16) logits, in the order of `toybox.WORDS`.
      directions: (B, 96) unit vectors.
    """

    words: Array
    directions: Array


class _Level(nn.Module):
    """A strided convolution, then `blocks` residual convolutions."""

    features: int
    stride: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        side = max(self.stride, 3)  # stride 4: 4×4 patches without overlap; stride 2: overlapping 3×3
        x = Conv(self.features, (side, side), (self.stride, self.stride), name="down")(x)
        for i in range(self.blocks):
            h = nn.silu(GroupNorm(8, name=f"norm_{i}")(x))
            x = x + Conv(self.features, (3, 3), name=f"conv_{i}")(h)
        return x


def _pool(x: Array) -> Array:
    """Mean and maximum over space: (B, h, w, C) → (B, 2C)."""
    # The mean describes large areas such as skies, the maximum small details such as an eye.
    return jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)


class _Scene(nn.Module):
    """Network from images (B, 64, 64, 3) in [-1, 1] to a `View`."""

    @nn.compact
    def __call__(self, images: Array) -> View:
        fine = _Level(64, 4, 1, name="level_0")(images)  # 16×16
        coarse = _Level(96, 2, 2, name="level_1")(fine)  # 8×8
        pooled = _pool(nn.silu(GroupNorm(8, name="norm")(coarse)))
        # Like one level of a UNet: the coarse level knows the subject, the fine one where its edges are.
        x = Dense(64, name="up")(coarse)
        x = fine + jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = x + Conv(64, (3, 3), name="up_conv")(nn.silu(GroupNorm(8, name="up_norm")(x)))
        region = Dense(16, name="region")(nn.silu(x))  # (B, 16, 16, 16): 4×4 pixels of each patch
        b = len(images)
        # (B, 16, 16, 4, 4) → (B, 16, 4, 16, 4) → (B, 64, 64)
        region = region.reshape(b, 16, 16, 4, 4).swapaxes(2, 3).reshape(b, SIZE, SIZE)
        return View(Dense(len(BACKGROUNDS), name="backgrounds")(pooled), region)


class _Subject(nn.Module):
    """Network from crops (B, 48, 48, 4), the subject on grey and its mask, to a `Look`."""

    @nn.compact
    def __call__(self, crops: Array) -> Look:
        x = _Level(64, 4, 2, name="level_0")(crops)  # 12×12
        x = _Level(128, 2, 2, name="level_1")(x)  # 6×6
        pooled = _pool(nn.silu(GroupNorm(8, name="norm")(x)))
        direction = Dense(96, name="direction")(pooled)
        direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
        return Look(Dense(len(WORDS), name="words")(pooled), direction)


class JudgeNet(nn.Module):
    """Both networks. They share no parameters."""

    def setup(self):
        self.scene = _Scene()
        self.subject = _Subject()

    def __call__(self, images: Array, masks: Array) -> tuple[View, Look]:
        return self.see(images), self.look(images, masks)

    def see(self, images: Array) -> View:
        """Predict from images (B, 64, 64, 3) in [-1, 1]."""
        return self.scene(images)

    def look(self, images: Array, masks: Array) -> Look:
        """Predict from images like those of `see` and masks (B, 64, 64) in [0, 1] of the subject."""
        return self.subject(cut_out(images, masks))


def cut_out(images: Array, masks: Array) -> Array:
    """Cut out what is inside the masks, centred and scaled to one size, on grey.

    Args:
      images: (B, 64, 64, 3) in [-1, 1].
      masks: (B, 64, 64) in [0, 1].

    Returns:
      (B, 48, 48, 4), the mask last. The side of the crop is twice the square root of the mask's area.
    """

    # Centre and scale come from the moments of the mask: one stray pixel would change its bounding box.
    def one(image: Array, mask: Array) -> Array:
        # A mask below 1 % of the image is not a subject, but its crop must still be finite.
        area = jnp.maximum(mask.sum(), 0.01 * mask.size)
        # First moments: the mean row and the mean column of the mask.
        at = jnp.arange(mask.shape[0], dtype=jnp.float32) + 0.5
        total = jnp.maximum(mask.sum(), 1e-3)
        centre = jnp.stack([(mask.sum(1) * at).sum(), (mask.sum(0) * at).sum()]) / total
        scale = CROP / (2.0 * jnp.sqrt(area))
        stacked = jnp.concatenate([image * mask[..., None], mask[..., None]], axis=-1)
        return jax.image.scale_and_translate(
            stacked, (CROP, CROP, 4), (0, 1), jnp.stack([scale, scale]), CROP / 2 - centre * scale,
            "linear", antialias=False,
        )  # fmt: skip

    return jax.vmap(one)(images, masks)


def judge_shapes() -> Any:
    """Shapes of the `params` tree of `JudgeNet`."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return param_shapes(JudgeNet(), images, jax.ShapeDtypeStruct((1, SIZE, SIZE), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The judge's predictions for images.

    Attributes:
      words: (B,) predicted words.
      backgrounds: (B,) predicted backgrounds.
      regions: (B, 64, 64) bool, predicted regions of the subject.
      directions: (B, 96) unit vectors of the subjects inside the regions.
    """

    words: list[str]
    backgrounds: list[str]
    regions: np.ndarray
    directions: np.ndarray


@dataclasses.dataclass(frozen=True)
class Judge:
    """The network with its parameters."""

    params: Any

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "Judge":
        """Load from a file that `save` wrote; default: the file that ships with the package.

        Raises:
          UserError: the file is missing or has other contents.
        """
        return cls(read_params(open_tensors(path), (DIFFUSERS,), judge_shapes(), on_device(jnp.float32)))

    def save(self, path: Path) -> None:
        """Write the parameters in float16, which halves the size of the package."""
        write_params(path, DIFFUSERS, jax.device_get(self.params), "float16")

    def look(self, images: np.ndarray) -> Verdict:
        """Judge uint8 images (B, 64, 64, 3). The subject is cut out by the judge's own region."""
        check_images(images)
        words, backgrounds, regions, directions = in_chunks(
            lambda rows: _look(self.params, np.stack(rows)), images
        )
        return Verdict([WORDS[i] for i in words], [BACKGROUNDS[i] for i in backgrounds], regions, directions)

    def directions(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Unit vectors (B, 96) of the subjects inside given masks (B, 64, 64), for example of references."""
        check_images(images)
        (vectors,) = in_chunks(
            lambda rows, inside: [_identify(self.params, np.stack(rows), np.stack(inside))],
            images,
            masks.astype(np.float32),
        )
        return vectors


def check_images(images: np.ndarray) -> None:
    """Raise `UserError` if images do not have the toybox's shape and dtype."""
    if images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise UserError(
            f"the judge needs uint8 images of {SIZE}×{SIZE} pixels, not {images.dtype} {images.shape[1:]}"
        )


@jax.jit
def _look(params: Any, images: Array) -> tuple[Array, ...]:
    """Indices of word and background (B,), regions (B, 64, 64) and directions (B, 96)."""
    signed = to_signed(images)
    view: Any = JudgeNet().apply({"params": params}, signed, method="see")
    inside = jax.nn.sigmoid(view.region)  # soft, as in training
    look: Any = JudgeNet().apply({"params": params}, signed, inside, method="look")
    seen = (jnp.argmax(x, axis=-1) for x in (look.words, view.backgrounds))
    return (*seen, view.region > 0, look.directions)


@jax.jit
def _identify(params: Any, images: Array, masks: Array) -> Array:
    """Directions (B, 96) of the subjects inside masks."""
    look: Any = JudgeNet().apply({"params": params}, to_signed(images), masks, method="look")
    return look.directions
