"""How the passes of a step combine into one prediction."""

import jax.numpy as jnp
from jax import Array

MODES = ("paper", "direct")
SCOPES = ("image", "mask")


def paper_guidance(
    empty: Array, text: Array, subject: Array, text_weight: Array, image_weight: Array
) -> Array:
    """eq. 13: ε_∅ + ω_t (ε_T − ε_∅) + ω_i (ε_TI − ε_T); predictions (B, h, w, C), weights (B,)."""
    return empty + _expand(text_weight) * (text - empty) + _expand(image_weight) * (subject - text)


def direct_guidance(negative: Array, subject: Array, weight: Array, rescale: Array) -> Array:
    """RealCustom++: ε_neg + ω (ε_TI − ε_neg), its standard deviation pulled back to ε_TI's by the share φ.

    Args:
      negative, subject: predictions (B, h, w, C).
      weight: ω, (B,).
      rescale: φ, (B,), 0 for none (arXiv 2305.08891, eq. 15 and 16).
    """
    guided = negative + _expand(weight) * (subject - negative)
    ratio = subject.std(axis=(1, 2, 3), keepdims=True) / guided.std(axis=(1, 2, 3), keepdims=True)
    phi = _expand(rescale)
    return jnp.where(phi == 0.0, guided, phi * guided * ratio + (1.0 - phi) * guided)


def _expand(weight: Array) -> Array:
    return weight[:, None, None, None]
