"""The judge of the toybox benchmark: a small network that never conditioned an image.

It sees a 64×64 image and says which word and which background it shows and where the subject is; and it
turns what it sees of a subject into a direction, by which one of several identities is told from the others.
Trained on drawn scenes with exact labels alone (`train_judge`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from realcustom_jax.errors import UserError
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.layers import GroupNorm
from realcustom_jax.toybox import BACKGROUNDS, WORDS
from realcustom_jax.weights.components import on_device, read_params, write_params
from realcustom_jax.weights.layouts import DIFFUSERS
from realcustom_jax.weights.tensors import open_tensors

SIZE = 64  # of the images, in pixels
CROP = 48  # of what the identity is read from
SHIPPED = Path(__file__).parent / "judge" / "model.safetensors"

_CHUNK = 40  # images that are judged at once, so that no count compiles another program


@flax.struct.dataclass
class View:
    """What the judge sees in images, as logits.

    Attributes:
      words: (B, 16), in the order of `toybox.WORDS`.
      backgrounds: (B, 13), in the order of `toybox.BACKGROUNDS`.
      region: (B, 64, 64), above 0 where the subject is.
    """

    words: Array
    backgrounds: Array
    region: Array


class _Down(nn.Module):
    """Halve height and width, then so many residual convolutions."""

    features: int
    blocks: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Conv(self.features, (3, 3), (2, 2), name="down")(x)
        for i in range(self.blocks):
            h = nn.silu(GroupNorm(8, name=f"norm_{i}")(x))
            x = x + nn.Conv(self.features, (3, 3), name=f"conv_{i}")(h)
        return x


def _pool(x: Array) -> Array:
    """(B, h, w, C) → (B, 2C): what there is on average, and what there is anywhere."""
    return jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)


def _depth_to_space(x: Array) -> Array:
    """(B, h, w, 4C) → (B, 2h, 2w, C)."""
    b, h, w, c = x.shape
    return x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5).reshape(b, 2 * h, 2 * w, c // 4)


class _Scene(nn.Module):
    """Images (B, 64, 64, 3) in [-1, 1] → `View`."""

    @nn.compact
    def __call__(self, images: Array) -> View:
        half = _Down(24, 0, name="level_0")(images)
        quarter = _Down(48, 1, name="level_1")(half)
        eighth = _Down(96, 2, name="level_2")(quarter)
        pooled = _pool(nn.silu(GroupNorm(8, name="norm")(eighth)))
        x = jnp.repeat(jnp.repeat(eighth, 2, axis=1), 2, axis=2)
        x = jnp.concatenate([x, quarter], axis=-1)
        x = nn.Conv(96, (3, 3), name="up_1")(nn.silu(GroupNorm(8, name="up_norm_1")(x)))
        x = jnp.concatenate([_depth_to_space(x), half], axis=-1)
        x = nn.Conv(16, (3, 3), name="up_0")(nn.silu(GroupNorm(8, name="up_norm_0")(x)))
        region = _depth_to_space(nn.Conv(4, (3, 3), name="region")(nn.silu(x)))[..., 0]
        words = nn.Dense(len(WORDS), name="words")(pooled)
        return View(words, nn.Dense(len(BACKGROUNDS), name="backgrounds")(pooled), region)


class _Identity(nn.Module):
    """Crops (B, 48, 48, 4), the subject on grey and its mask → unit directions (B, 96)."""

    @nn.compact
    def __call__(self, crops: Array) -> Array:
        x = _Down(32, 1, name="level_0")(crops)
        x = _Down(64, 1, name="level_1")(x)
        x = _Down(128, 2, name="level_2")(x)
        x = nn.Dense(96, name="direction")(_pool(nn.silu(GroupNorm(8, name="norm")(x))))
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class JudgeNet(nn.Module):
    """Both networks, which share nothing."""

    def setup(self):
        self.scene = _Scene()
        self.identity = _Identity()

    def __call__(self, images: Array, masks: Array) -> tuple[View, Array]:
        return self.see(images), self.identify(images, masks)

    def see(self, images: Array) -> View:
        """Images (B, 64, 64, 3) in [-1, 1]."""
        return self.scene(images)

    def identify(self, images: Array, masks: Array) -> Array:
        """Images as in `see` and (B, 64, 64) in [0, 1], where the subject is → unit directions (B, 96)."""
        return self.identity(cut_out(images, masks))


def cut_out(images: Array, masks: Array) -> Array:
    """What is inside the masks, centred and at one scale, on grey: (B, 48, 48, 4), the mask last.

    Centre and scale come from the mask's moments, not from its bounding box, which one stray pixel changes:
    the side of the crop is twice the root of the mask's area.
    """

    def one(image: Array, mask: Array) -> Array:
        # A mask of less than 1 % is no subject; the crop must still be finite.
        area = jnp.maximum(mask.sum(), 0.01 * mask.size)
        at = jnp.arange(mask.shape[0]) + 0.5
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
    return param_shapes(JudgeNet().init, images, jax.ShapeDtypeStruct((1, SIZE, SIZE), jnp.float32))


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
        outputs = _in_chunks(functools.partial(_look, self.params), images)
        words, backgrounds, regions, directions = outputs
        return Verdict([WORDS[i] for i in words], [BACKGROUNDS[i] for i in backgrounds], regions, directions)

    def directions(self, images: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Unit vectors (B, 96) of the subjects inside known masks (B, 64, 64), of reference photos."""
        check_images(images)
        return _in_chunks(functools.partial(_identify, self.params), images, masks.astype(np.float32))[0]


def check_images(images: np.ndarray) -> None:
    """Raises `UserError` for images that are not the toybox's."""
    if images.shape[1:] != (SIZE, SIZE, 3) or images.dtype != np.uint8:
        raise UserError(
            f"the judge looks at uint8 images of {SIZE}×{SIZE} pixels, not at {images.dtype} "
            f"{images.shape[1:]}"
        )


@jax.jit
def _look(params: Any, images: Array) -> tuple[Array, ...]:
    signed = images.astype(jnp.float32) / 127.5 - 1.0
    view = JudgeNet().apply({"params": params}, signed, method="see")
    inside = jax.nn.sigmoid(view.region)
    directions = JudgeNet().apply({"params": params}, signed, inside, method="identify")
    return jnp.argmax(view.words, -1), jnp.argmax(view.backgrounds, -1), view.region > 0, directions


@jax.jit
def _identify(params: Any, images: Array, masks: Array) -> tuple[Array]:
    signed = images.astype(jnp.float32) / 127.5 - 1.0
    return (JudgeNet().apply({"params": params}, signed, masks, method="identify"),)


def _in_chunks(function: Any, *arrays: np.ndarray) -> Sequence[np.ndarray]:
    """Outputs of a function over the first axis, `_CHUNK` rows at a time, the last ones padded."""
    count = len(arrays[0])
    outputs = []
    for start in range(0, count, _CHUNK):
        rows = [array[start : start + _CHUNK] for array in arrays]
        padding = _CHUNK - len(rows[0])
        rows = [np.concatenate([row, np.repeat(row[-1:], padding, axis=0)]) for row in rows]
        outputs.append([np.asarray(x)[: _CHUNK - padding] for x in function(*rows)])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
