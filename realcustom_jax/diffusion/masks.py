"""Adaptive mask guidance: from word maps to the influence scope M̂ (eq. 11)."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.resize import resize_mask

NORMALISATIONS = ("max_norm", "min_max_norm", "min_max_per_channel")
KINDS = ("soft", "binary", "threshold")
OVERLAPS = ("strongest", "shared")

_EPS = 1e-6  # as published; it also keeps an empty map (no target words) empty instead of turning it into 0/0


def aggregate(maps: Sequence[Array], height: int, width: int, normalisation: str) -> Array:
    """Word maps of all layers on one grid, averaged and normalised.

    Args:
      maps: word maps (B, R, h_i, w_i).
      height, width: of the mask grid.
      normalisation: "max_norm" divides the average by its maximum; "min_max_norm" moves it to 0…1;
        "min_max_per_channel" moves every layer's map to 0…1 first, and their average again.

    Returns:
      (B, R, height, width).
    """
    resized = jnp.stack([resize_mask(word_map, height, width) for word_map in maps])
    if normalisation == "min_max_per_channel":
        resized = _to_unit(resized)
    return normalise(resized.mean(axis=0), normalisation)


def normalise(maps: Array, normalisation: str) -> Array:
    """The last part of each strategy of `aggregate`: maps (…, h, w) of one grid to at most 1."""
    if normalisation not in NORMALISATIONS:
        known = ", ".join(NORMALISATIONS)
        raise UserError(f"mask normalisation {normalisation!r} is unknown; known: {known}")
    if normalisation == "max_norm":
        return maps / (maps.max(axis=(-2, -1), keepdims=True) + _EPS)
    return _to_unit(maps)


def _to_unit(x: Array) -> Array:
    low, high = x.min(axis=(-2, -1), keepdims=True), x.max(axis=(-2, -1), keepdims=True)
    return (x - low) / (high - low + _EPS)


def influence_scope(
    maps: Array, gamma_scope: Array, kind: str, overlap: str = "shared", present: Array | None = None
) -> Array:
    """M̂ of every subject from its normalised word map.

    Args:
      maps: (B, R, h, w) normalised word maps.
      gamma_scope: (B,) share of the pixels in which the subject may act, 0 (nowhere) … 1. Of equal pixels
        the earlier is kept.
      kind: "soft" keeps the top share as it is and zeroes the rest, "binary" sets what is kept to 1,
        "threshold" keeps values of at least 1 − γ_scope, however many, as they are.
      overlap: "strongest" leaves a pixel that several masks claim to the strongest normalised word map,
        "shared" to all.
      present: (B, R) 1 for slots that get a mask; others get 0 everywhere and claim no pixel. None for all.

    Returns:
      (B, R, h, w).
    """
    if kind not in KINDS:
        raise UserError(f"mask kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if overlap not in OVERLAPS:
        raise UserError(f"mask overlap {overlap!r} is unknown; known: {', '.join(OVERLAPS)}")
    gamma = gamma_scope[:, None, None, None]
    if kind == "threshold":
        kept = maps >= 1.0 - gamma
    else:
        flat = maps.reshape(*maps.shape[:2], -1)
        rank = jnp.argsort(jnp.argsort(-flat, axis=-1, stable=True), axis=-1).reshape(maps.shape)
        count = jnp.floor(gamma * flat.shape[-1] + 1e-4)
        kept = rank.astype(count.dtype) < count
    if present is not None:
        kept &= present[..., None, None] > 0
    masks = jnp.where(kept, 1.0 if kind == "binary" else maps, 0.0)
    if overlap == "strongest" and maps.shape[1] > 1:
        claims = jnp.where(masks > 0, maps, -1.0)
        winner = jnp.argmax(claims, axis=1)[:, None] == jnp.arange(maps.shape[1])[None, :, None, None]
        masks = jnp.where(winner, masks, 0.0)
    return masks


def with_user_masks(masks: Array, user_masks: Array, replace_guided: Array, overlap: str) -> Array:
    """Guided masks and those that users drew, as the scopes that act.

    Args:
      masks: (B, R, h, w) from `influence_scope`; those of subjects with a mask instead are not looked at.
      user_masks: (B, R, h, w) in [0, 1]; 1 everywhere where a subject has none.
      replace_guided: (B, R) 1 where the user's mask replaces the guided one; else they are multiplied.
      overlap: "strongest" takes the pixels of a mask that stands instead from all others but those of its
        kind, which act as the user said, also where two of them overlap; "shared" takes none.

    Returns:
      (B, R, h, w).
    """
    replaced = replace_guided[..., None, None] > 0
    guided = masks * user_masks
    if overlap == "strongest":
        taken = (replaced & (user_masks > 0)).any(axis=1, keepdims=True)
        guided = jnp.where(taken, 0.0, guided)
    return jnp.where(replaced, user_masks, guided)
