"""Refinement of word maps by self-attention (RealCustom++): pixels of one object attend to each other."""

import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.masks import normalise
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.resize import resize_mask

REFINEMENTS = ("none", "self_attention")


def refinement_level(unet: UNetConfig, latents: tuple[int, int], grid: tuple[int, int]) -> int:
    """UNet level whose self-attention refines the masks: the finest one that is not finer than the mask grid.

    If all levels are finer than the grid, it is the coarsest level.

    Args:
      unet: the UNet's shape.
      latents, grid: height and width of the latents and of the masks.

    Raises:
      UserError: for a UNet without any self-attention.
    """
    last = len(unet.block_out_channels) - 1
    # Only one level: the map of a level has (h·w)² entries, 16M at 64×64 latents. The last level needs no
    # transformers of its own: the middle block has one at its resolution.
    levels = [
        level
        for level in range(last + 1)
        if unet.self_attentions[level]
        and (level == last or any(unet.has_attention(level, kind) for kind in ("down", "up")))
    ]
    if not levels:
        raise UserError("mask_refine 'self_attention' needs a UNet that has self-attention")
    # Level k works at the latents' size halved k times.
    fitting = [k for k in levels if latents[0] >> k <= grid[0] and latents[1] >> k <= grid[1]]
    return min(fitting) if fitting else max(levels)


def refine(
    maps: Array, self_attention: Array, latents: tuple[int, int], level: int, normalisation: str
) -> Array:
    """Spread each word map m along the self-attention A: refined_i = Σ_j A_ij m_j.

    Args:
      maps: (B, R, h', w') normalised word maps.
      self_attention: (B, h·w, h·w) probabilities A of the level; each row sums to 1.
      latents: height and width of the latents.
      level: UNet level of `self_attention`; h = height >> level.
      normalisation: normalisation of the result, as in `masks.normalise`.

    Returns:
      (B, R, h', w'), normalised again.
    """
    height, width = latents[0] >> level, latents[1] >> level
    # (B, R, h', w') → (B, R, h, w) → (B, R, h·w)
    on_level = resize_mask(maps, height, width).reshape(*maps.shape[:2], -1)
    # Full precision: masks are compared by rank later, and the order must not depend on bfloat16 rounding.
    refined = jnp.einsum("bij,brj->bri", self_attention, on_level, precision=jax.lax.Precision.HIGHEST)
    refined = refined.reshape(*maps.shape[:2], height, width)
    return normalise(resize_mask(refined, *maps.shape[-2:]), normalisation)
