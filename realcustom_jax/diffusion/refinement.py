"""Refining word maps by self-attention (RealCustom++): pixels of one object attend to each other."""

import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.masks import normalise
from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.resize import resize_mask

REFINEMENTS = ("none", "self_attention")


def refinement_level(unet: UNetConfig, latents: tuple[int, int], grid: tuple[int, int]) -> int:
    """The UNet level whose self-attention refines masks: the finest that is not finer than the mask grid.

    Where all are finer it is the coarsest. The map of a level has (h·w)² entries, so only one is kept.

    Args:
      unet: the UNet's shape.
      latents, grid: height and width of the latents and of the masks.

    Raises:
      UserError: for a UNet without any self-attention.
    """
    last = len(unet.block_out_channels) - 1
    levels = [
        level
        for level in range(last + 1)
        if unet.self_attentions[level]
        and (level == last or any(unet.has_attention(level, kind) for kind in ("down", "up")))
    ]
    if not levels:
        raise UserError("mask_refine 'self_attention' needs a UNet that has self-attention")
    fitting = [k for k in levels if latents[0] >> k <= grid[0] and latents[1] >> k <= grid[1]]
    return min(fitting) if fitting else max(levels)


def refine(
    maps: Array, self_attention: Array, latents: tuple[int, int], level: int, normalisation: str
) -> Array:
    """Spreads each map along the self-attention A: refined_i = Σ_j A_ij m_j.

    Args:
      maps: (B, R, h', w') normalised word maps.
      self_attention: (B, h·w, h·w) of the level, rows summing to 1.
      latents: height and width of the latents.
      level: of the UNet, h = height >> level.
      normalisation: of the result, as in `masks.normalise`.

    Returns:
      (B, R, h', w'), normalised again.
    """
    height, width = latents[0] >> level, latents[1] >> level
    on_level = resize_mask(maps, height, width).reshape(*maps.shape[:2], -1)
    refined = jnp.einsum("bij,brj->bri", self_attention, on_level, precision=jax.lax.Precision.HIGHEST)
    refined = refined.reshape(*maps.shape[:2], height, width)
    return normalise(resize_mask(refined, *maps.shape[-2:]), normalisation)
