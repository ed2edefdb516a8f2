"""Guidance against its equations in numpy."""

import jax.numpy as jnp
import numpy as np

from realcustom_jax.diffusion.guidance import direct_guidance, paper_guidance

RNG = np.random.default_rng(0)
E1, E2, E3 = RNG.standard_normal((3, 2, 4, 4, 3)).astype(np.float32)


def test_paper_guidance_equals_equation_13():
    """Each image of the batch with its own weights; float32 arithmetic, so 1e-5."""
    wt, wi = np.float32([7.5, 2.0]), np.float32([12.5, 0.0])
    result = paper_guidance(*map(jnp.asarray, (E1, E2, E3, wt, wi)))
    for b in range(2):
        expected = E1[b] + wt[b] * (E2[b] - E1[b]) + wi[b] * (E3[b] - E2[b])
        np.testing.assert_allclose(result[b], expected, rtol=1e-5, atol=1e-5)


def test_direct_guidance_with_rescale_equals_formula():
    """φ = 0 leaves the guided prediction, φ = 1 gives it the standard deviation of the subject's pass."""
    weight = jnp.full((2,), 3.5)
    plain = E1 + 3.5 * (E3 - E1)
    np.testing.assert_allclose(direct_guidance(E1, E3, weight, jnp.zeros(2)), plain, rtol=1e-5, atol=1e-5)
    full = np.asarray(direct_guidance(jnp.asarray(E1), jnp.asarray(E3), weight, jnp.ones(2)))
    np.testing.assert_allclose(full.std(axis=(1, 2, 3)), E3.std(axis=(1, 2, 3)), rtol=1e-5)
    half = np.asarray(direct_guidance(jnp.asarray(E1), jnp.asarray(E3), weight, jnp.full((2,), 0.5)))
    np.testing.assert_allclose(half, 0.5 * (full + plain), rtol=1e-4, atol=1e-5)
