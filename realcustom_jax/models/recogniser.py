"""A small convolutional network that tells which word of a fixed list names the subject of an image."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jax import Array

from realcustom_jax.models.layers import Conv, Dense, GroupNorm


@dataclasses.dataclass(frozen=True)
class RecogniserConfig:
    """Shape of a recogniser.

    Attributes:
      words: the words that it knows.
      image_size: side of its input in pixels.
      widths: channels of each level; every level halves the image.
      blocks: residual blocks per level.
    """

    words: tuple[str, ...]
    image_size: int = 64
    widths: tuple[int, ...] = (24, 48, 96, 128)
    blocks: int = 1


class Recogniser(nn.Module):
    """Images (B, S, S, 3) in [-1, 1] → logits (B, 1 + words); the first is "none of the words"."""

    config: RecogniserConfig

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = images
        for level, width in enumerate(self.config.widths):
            x = Conv(width, (3, 3), (2, 2), name=f"down_{level}")(x)
            for block in range(self.config.blocks):
                h = nn.silu(GroupNorm(8, name=f"norm_{level}_{block}")(x))
                x = x + Conv(width, (3, 3), name=f"conv_{level}_{block}")(h)
        x = nn.silu(GroupNorm(8, name="norm")(x))
        # (B, h, w, C) → (B, 2C): the mean describes large areas, the maximum small parts such as an ear.
        pooled = jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
        return Dense(1 + len(self.config.words), name="words")(pooled)
