"""Guidance: combines the passes of a step into one prediction."""

import jax.numpy as jnp
from jax import Array

MODES = ("paper", "direct")
SCOPES = ("image", "mask")


def paper_guidance(
    empty: Array, text: Array, subject: Array, text_weight: Array, image_weight: Array
) -> Array:
    """Guidance of the paper (eq. 13): ε_∅ + ω_t (ε_T − ε_∅) + ω_i (ε_TI − ε_T).

    Args:
      empty, text, subject: the predictions ε_∅, ε_T and ε_TI, each (B, h, w, C).
      text_weight, image_weight: ω_t and ω_i, each (B,).
    """
    return empty + _expand(text_weight) * (text - empty) + _expand(image_weight) * (subject - text)


def direct_guidance(negative: Array, subject: Array, weight: Array, rescale: Array) -> Array:
    """Guidance of RealCustom++: ε_neg + ω (ε_TI − ε_neg), with an optional rescale of the contrast.

    The rescale mixes the result, in the share φ, with one that has the standard deviation of ε_TI
    (arXiv 2305.08891, eq. 15 and 16).

    Args:
      negative, subject: the predictions ε_neg and ε_TI, each (B, h, w, C).
      weight: ω, (B,).
      rescale: φ, (B,); 0 turns it off.
    """
    guided = negative + _expand(weight) * (subject - negative)
    ratio = subject.std(axis=(1, 2, 3), keepdims=True) / guided.std(axis=(1, 2, 3), keepdims=True)
    phi = _expand(rescale)
    # At φ = 0 the formula would turn an infinite ratio (a constant prediction) into NaN.
    return jnp.where(phi == 0.0, guided, phi * guided * ratio + (1.0 - phi) * guided)


def _expand(weight: Array) -> Array:
    return weight[:, None, None, None]  # (B,) → (B, 1, 1, 1)
