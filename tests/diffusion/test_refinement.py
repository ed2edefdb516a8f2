"""Mask refinement by self-attention: its formula, and the UNet level it uses."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.diffusion.masks import NORMALISATIONS, normalise
from realcustom_jax.diffusion.refinement import refine, refinement_level
from realcustom_jax.models.config import UNetConfig

RNG = np.random.default_rng(0)
MAPS = RNG.random((2, 3, 4, 6)).astype(np.float32)


def attention() -> np.ndarray:
    logits = np.exp(3 * RNG.random((2, 24, 24)))
    return (logits / logits.sum(-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_refine_equals_formula(normalisation):
    """refined_i = Σ_j A_ij m_j pixel by pixel in float64; 1e-5, float32 and a division by the range."""
    a = attention()
    result = refine(jnp.asarray(MAPS), jnp.asarray(a), (8, 12), 1, normalisation)
    for b, r in np.ndindex(2, 3):
        flat = MAPS[b, r].ravel().astype(np.float64)
        refined = np.array([sum(a[b, i, j] * flat[j] for j in range(24)) for i in range(24)])
        low = 0 if normalisation == "max_norm" else refined.min()
        expected = (refined - low) / (refined.max() - low + 1e-6)
        np.testing.assert_allclose(result[b, r], expected.reshape(4, 6), atol=1e-5)


def test_identity_attention_returns_normalised_map():
    eye = jnp.broadcast_to(jnp.eye(24), (2, 24, 24))
    result = refine(jnp.asarray(MAPS), eye, (4, 6), 0, "min_max_norm")
    np.testing.assert_allclose(result, normalise(jnp.asarray(MAPS), "min_max_norm"), atol=1e-6)


def test_constant_attention_gives_a_constant_map():
    """Every pixel becomes the mean; under max_norm that is 1 (1e-5: the ε of the division)."""
    even = jnp.full((2, 24, 24), 1 / 24)
    result = refine(jnp.asarray(MAPS), even, (4, 6), 0, "max_norm")
    np.testing.assert_allclose(result, np.ones_like(MAPS), atol=1e-5)


def test_other_grid_is_resized_to_level_and_back():
    """A 2×3 level under a 4×6 grid: halving and doubling of a bilinear resize, by hand in one row.

    Half-pixel centres without antialiasing: half the size averages pairs, twice the size blends 3 : 1.
    """
    eye = jnp.broadcast_to(jnp.eye(6), (2, 6, 6))
    result = refine(jnp.asarray(MAPS), eye, (8, 12), 2, "max_norm")
    small = MAPS.reshape(2, 3, 2, 2, 3, 2).mean((3, 5))
    tall = np.stack([small[:, :, 0], 0.75 * small[:, :, 0] + 0.25 * small[:, :, 1]], axis=2)
    a, b, c = np.moveaxis(tall, -1, 0)
    row = np.stack([a, (3 * a + b) / 4, (a + 3 * b) / 4, (3 * b + c) / 4, (b + 3 * c) / 4, c], axis=-1)
    top = np.asarray(result)[:, :, :2]
    np.testing.assert_allclose(top / top[:, :, :1, :1], row / row[:, :, :1, :1], rtol=1e-5)


BOTH, NONE = "CrossAttnDownBlock2D", "DownBlock2D"
BASE = UNetConfig(
    block_out_channels=(8, 8, 8),
    down_block_types=(NONE, BOTH, BOTH),
    up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)


@pytest.mark.parametrize(
    ("changes", "grid", "level"),
    [
        ({}, (16, 16), 1),  # level 0 has no attention
        ({}, (8, 8), 1),
        ({}, (4, 4), 2),
        ({}, (8, 4), 2),
        ({}, (2, 2), 2),  # all are finer: the coarsest
        ({"self_attention": (True, False, True)}, (16, 16), 2),
        ({"self_attention": (True, True, False)}, (2, 2), 1),
        ({"down_block_types": (NONE,) * 3, "up_block_types": ("UpBlock2D",) * 3}, (16, 16), 2),  # the middle
    ],
)
def test_refinement_uses_finest_level_not_finer_than_masks(changes, grid, level):
    assert refinement_level(dataclasses.replace(BASE, **changes), (16, 16), grid) == level


@pytest.mark.parametrize("self_attention", [False, (True, False, False)])
def test_refinement_without_self_attention_raises(self_attention):
    """Level 0 of this UNet has no transformers, so its entry does not count."""
    config = dataclasses.replace(BASE, self_attention=self_attention)
    with pytest.raises(UserError, match="'self_attention' needs a UNet that has self-attention"):
        refinement_level(config, (16, 16), (16, 16))
