"""The judge of the toybox benchmark: a small network that never conditioned an image.

It sees a 64×64 image and says which background it shows and where the subject is; of what is cut out there it
says the word, and makes a direction, by which one of several identities of the word is told from the others.
Trained on drawn scenes with exact labels alone (`train_judge`).
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
from realcustom_jax.models.conditioning import to_signed
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.layers import GroupNorm
from realcustom_jax.toybox import BACKGROUNDS, WORDS
from realcustom_jax.weights.components import on_device, read_params, write_params
from realcustom_jax.weights.layouts import DIFFUSERS
from realcustom_jax.weights.tensors import open_tensors

SIZE = 64  # of the images, in pixels
CROP = 48  # of what the identity is read from
SHIPPED = Path(__file__).parent / "judge" / "model.safetensors"


@flax.struct.dataclass
class View:
    """What the judge sees in images.

    Attributes:
      backgrounds: (B, 13) logits, in the order of `toybox.BACKGROUNDS`.
      region: (B, 64, 64) logits, above 0 where the subject is.
    """

    backgrounds: Array
    region: Array


@flax.struct.dataclass
class Look:
    """What it sees in cut-out subjects.

    Attributes:
      words: (B, 16) logits, in the order of `toybox.WORDS`.
      directions: (B, 96) unit vectors.
    """

    words: Array
    directions: Array


class _Level(nn.Module):
    """A strided convolution without overlap, or with, then so many residual convolutions."""

    features: int
    stride: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        side = max(self.stride, 3)
        x = nn.Conv(self.features, (side, side), (self.stride, self.stride), name="down")(x)
        for i in range(self.blocks):
            h = nn.silu(GroupNorm(8, name=f"norm_{i}")(x))
            x = x + nn.Conv(self.features, (3, 3), name=f"conv_{i}")(h)
        return x


def _pool(x: Array) -> Array:
    """(B, h, w, C) → (B, 2C): what there is on average, and what there is anywhere."""
    return jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)


class _Scene(nn.Module):
    """Images (B, 64, 64, 3) in [-1, 1] → `View`."""

    @nn.compact
    def __call__(self, images: Array) -> View:
        fine = _Level(64, 4, 1, name="level_0")(images)  # 16×16
        coarse = _Level(96, 2, 2, name="level_1")(fine)  # 8×8
        pooled = _pool(nn.silu(GroupNorm(8, name="norm")(coarse)))
        x = nn.Dense(64, name="up")(coarse)
        x = fine + jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        x = x + nn.Conv(64, (3, 3), name="up_conv")(nn.silu(GroupNorm(8, name="up_norm")(x)))
        region = nn.Dense(16, name="region")(nn.silu(x))  # 4×4 pixels of each of 16×16 places
        b = len(images)
        region = region.reshape(b, 16, 16, 4, 4).swapaxes(2, 3).reshape(b, SIZE, SIZE)
        return View(nn.Dense(len(BACKGROUNDS), name="backgrounds")(pooled), region)


class _Subject(nn.Module):
    """Crops (B, 48, 48, 4), the subject on grey and its mask → `Look`."""

    @nn.compact
    def __call__(self, crops: Array) -> Look:
        x = _Level(64, 4, 2, name="level_0")(crops)  # 12×12
        x = _Level(128, 2, 2, name="level_1")(x)  # 6×6
        pooled = _pool(nn.silu(GroupNorm(8, name="norm")(x)))
        direction = nn.Dense(96, name="direction")(pooled)
        direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
        return Look(nn.Dense(len(WORDS), name="words")(pooled), direction)


class JudgeNet(nn.Module):
    """Both networks, which share nothing."""

    def setup(self):
        self.scene = _Scene()
        self.subject = _Subject()

    def __call__(self, images: Array, masks: Array) -> tuple[View, Look]:
        return self.see(images), self.look(images, masks)

    def see(self, images: Array) -> View:
        """Images (B, 64, 64, 3) in [-1, 1]."""
        return self.scene(images)

    def look(self, images: Array, masks: Array) -> Look:
        """Images as in `see`, and (B, 64, 64) in [0, 1], where the subject is."""
        return self.subject(cut_out(images, masks))


def cut_out(images: Array, masks: Array) -> Array:
    """What is inside the masks, centred and at one scale, on grey: (B, 48, 48, 4), the mask last.

    Centre and scale come from the mask's moments, not from its bounding box, which one stray pixel changes:
    the side of the crop is twice the root of the mask's area.
    """

    def one(image: Array, mask: Array) -> Array:
        # A mask of less than 1 % is no subject; the crop must still be finite.
        area = jnp.maximum(mask.sum(), 0.01 * mask.size)
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
    """The `params` tree of `JudgeNet`, as shapes."""
    images = jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32)
    return param_shapes(JudgeNet(), images, jax.ShapeDtypeStruct((1, SIZE, SIZE), jnp.float32))


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the judge says of images.

    Attributes:
      words: (B,) the word it sees.
      backgrounds: (B,) the background it sees.
      regions: (B, 64, 64) bool, where it sees the subject.
      directions: (B, 96) unit vectors of the subject inside the region.
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
        """From a file that `save` wrote; default the one that ships with the package.

        Raises:
          UserError: for a missing or another kind of file.
        """
        return cls(read_params(open_tensors(path), (DIFFUSERS,), judge_shapes(), on_device(jnp.float32)))

    def save(self, path: Path) -> None:
        write_params(path, DIFFUSERS, jax.device_get(self.params), "float16")

    def look(self, images: np.ndarray) -> Verdict:
        """Judge uint8 images (B, 64, 64, 3); the subject is where the judge sees it."""
        check_images(images)
        words, backgrounds, regions, directions = in_chunks(
            lambda rows: _look(self.params, np.stack(rows)), images
        )
        return Verdict([WORDS[i] for i in words], [BACKGROUNDS[i] for i in backgrounds], regions, directions)

    def directions(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Unit vectors (B, 96) of the subjects inside known masks (B, 64, 64), of reference photos."""
        check_images(images)
        (found,) = in_chunks(
            lambda rows, inside: [_identify(self.params, np.stack(rows), np.stack(inside))],
            images,
            masks.astype(np.float32),
        )
        return found


def check_images(images: np.ndarray) -> None:
    """Raises `UserError` for images that are not the toybox's."""
    if images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise UserError(
            f"the judge looks at uint8 images of {SIZE}×{SIZE} pixels, not at {images.dtype} "
            f"{images.shape[1:]}"
        )


@jax.jit
def _look(params: Any, images: Array) -> tuple[Array, ...]:
    signed = to_signed(images)
    view = JudgeNet().apply({"params": params}, signed, method="see")
    inside = jax.nn.sigmoid(view.region)
    look = JudgeNet().apply({"params": params}, signed, inside, method="look")
    seen = (jnp.argmax(x, axis=-1) for x in (look.words, view.backgrounds))
    return (*seen, view.region > 0, look.directions)


@jax.jit
def _identify(params: Any, images: Array, masks: Array) -> Array:
    return JudgeNet().apply({"params": params}, to_signed(images), masks, method="look").directions
