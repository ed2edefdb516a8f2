"""Adaptive mask guidance: turns word maps into the influence scope M̂ (eq. 11)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.resize import resize_mask

OVERLAPS = ("strongest", "shared")

_EPS = 1e-6  # the published value; it also keeps an all-zero map (no target words) at 0 instead of 0/0


def aggregate(maps: Sequence[Array], height: int, width: int, normalisation: str) -> Array:
    """Average the word maps of all layers on one grid, and normalise the result.

    Args:
      maps: word maps, one (B, R, h_i, w_i) per layer.
      height, width: size of the mask grid.
      normalisation: "max_norm" divides the average by its maximum. "min_max_norm" scales it to 0…1.
        "min_max_per_channel" first scales the map of each layer to 0…1, then their average.

    Returns:
      (B, R, height, width).

    Raises:
      UserError: for an unknown normalisation.
    """
    # L × (B, R, h_i, w_i) → (L, B, R, height, width)
    resized = jnp.stack([resize_mask(word_map, height, width) for word_map in maps])
    return normalise(_normalisation(normalisation).layers(resized).mean(axis=0), normalisation)


def normalise(maps: Array, normalisation: str) -> Array:
    """Scale maps (…, h, w) to at most 1: the last part of each normalisation of `aggregate`.

    Raises:
      UserError: for an unknown normalisation.
    """
    return _normalisation(normalisation).average(maps)


def _unchanged(x: Array) -> Array:
    return x


def _by_maximum(x: Array) -> Array:
    return x / (x.max(axis=(-2, -1), keepdims=True) + _EPS)


def _to_unit(x: Array) -> Array:
    low, high = x.min(axis=(-2, -1), keepdims=True), x.max(axis=(-2, -1), keepdims=True)
    return (x - low) / (high - low + _EPS)


class _Normalisation(NamedTuple):
    """A normalisation: functions of the maps (…, h, w) of each layer, and of their average."""

    layers: Callable[[Array], Array]
    average: Callable[[Array], Array]


_NORMALISATIONS = {
    "max_norm": _Normalisation(_unchanged, _by_maximum),
    "min_max_norm": _Normalisation(_unchanged, _to_unit),
    # Layers differ in scale; scaled to 0…1 they have equal weight in the average.
    "min_max_per_channel": _Normalisation(_to_unit, _to_unit),
}
NORMALISATIONS = tuple(_NORMALISATIONS)


def _normalisation(name: str) -> _Normalisation:
    if name not in _NORMALISATIONS:
        raise UserError(f"mask normalisation {name!r} is unknown; known: {', '.join(NORMALISATIONS)}")
    return _NORMALISATIONS[name]


def _top_share(maps: Array, gamma: Array) -> Array:
    """True for the ⌊γ·h·w⌋ largest pixels: maps (B, R, h, w), γ (B, 1, 1, 1)."""
    flat = maps.reshape(*maps.shape[:2], -1)  # (B, R, h, w) → (B, R, h·w)
    # Ranks instead of a quantile: exactly ⌊γ·h·w⌋ pixels are kept, also where values are equal. argsort of
    # argsort is the rank, and γ may be traced.
    rank = jnp.argsort(jnp.argsort(-flat, axis=-1, stable=True), axis=-1).reshape(maps.shape)
    # 1e-4 of a pixel, so that rounding of γ·h·w in float32 cannot lose a pixel.
    count = jnp.floor(gamma * flat.shape[-1] + 1e-4)
    return rank.astype(count.dtype) < count


def _above_threshold(maps: Array, gamma: Array) -> Array:
    """True for pixels of at least 1 − γ."""
    return maps >= 1.0 - gamma


class _Kind(NamedTuple):
    """How a mask is cut out: `keep` (maps, γ) → bool, and `values` of the kept pixels, from the maps."""

    keep: Callable[[Array, Array], Array]
    values: Callable[[Array], Array]


_KINDS = {
    "soft": _Kind(_top_share, _unchanged),
    "binary": _Kind(_top_share, jnp.ones_like),
    "threshold": _Kind(_above_threshold, _unchanged),
}
KINDS = tuple(_KINDS)


def keeps_fixed_share(kind: str) -> bool:
    """Whether a kind of `KINDS` keeps a share γ_scope of the pixels, whatever their values."""
    return _KINDS[kind].keep is _top_share


def influence_scope(
    maps: Array, gamma_scope: Array, kind: str, overlap: str = "shared", present: Array | None = None
) -> Array:
    """Cut the influence scope M̂ of every subject out of its normalised word map (eq. 11).

    Args:
      maps: (B, R, h, w) normalised word maps.
      gamma_scope: (B,) γ_scope, the share of the pixels in which the subject may act, 0 (nowhere) … 1. Of
        pixels with equal values the earlier is kept.
      kind: "soft" keeps the values of the top share and zeroes the rest. "binary" sets the kept pixels to 1.
        "threshold" keeps all values of at least 1 − γ_scope, however many there are.
      overlap: who gets a pixel that several masks claim. "strongest": the subject with the strongest
        normalised word map; "shared": all of them.
      present: (B, R) 1 for slots that get a mask. The others get 0 everywhere and claim no pixel. None for
        all slots.

    Returns:
      (B, R, h, w).

    Raises:
      UserError: for an unknown kind or overlap.
    """
    if kind not in _KINDS:
        raise UserError(f"mask kind {kind!r} is unknown; known: {', '.join(KINDS)}")
    if overlap not in OVERLAPS:
        raise UserError(f"mask overlap {overlap!r} is unknown; known: {', '.join(OVERLAPS)}")
    kept = _KINDS[kind].keep(maps, gamma_scope[:, None, None, None])  # (B,) → (B, 1, 1, 1)
    if present is not None:
        kept &= present[..., None, None] > 0
    masks = jnp.where(kept, _KINDS[kind].values(maps), 0.0)
    if overlap == "strongest" and maps.shape[1] > 1:
        # Compare word maps, because binary masks are all 1. Word maps are ≥ 0, so −1 loses against all.
        claims = jnp.where(masks > 0, maps, -1.0)
        # (B, 1, h, w) == (1, R, 1, 1) → (B, R, h, w)
        winner = jnp.argmax(claims, axis=1)[:, None] == jnp.arange(maps.shape[1])[None, :, None, None]
        masks = jnp.where(winner, masks, 0.0)
    return masks


def with_user_masks(masks: Array, user_masks: Array, replace_guided: Array, overlap: str) -> Array:
    """Combine guided masks with masks that users drew.

    Args:
      masks: (B, R, h, w) from `influence_scope`. The mask of a subject with `replace_guided` is ignored.
      user_masks: (B, R, h, w) in [0, 1]; 1 everywhere for a subject without one.
      replace_guided: (B, R) 1 if the user's mask replaces the guided mask, 0 if the two are multiplied.
      overlap: "strongest" removes the pixels of replacing masks from all guided masks. Two replacing masks
        may overlap, because the user drew both. "shared" removes nothing.

    Returns:
      (B, R, h, w).
    """
    replaced = replace_guided[..., None, None] > 0
    guided = masks * user_masks
    if overlap == "strongest":
        taken = (replaced & (user_masks > 0)).any(axis=1, keepdims=True)
        guided = jnp.where(taken, 0.0, guided)
    return jnp.where(replaced, user_masks, guided)
