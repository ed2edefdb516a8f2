"""Decoding in tiles against decoding at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.vae_tiles import decode_in_tiles


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (37, 50)])
def test_tiles_are_the_whole_where_the_decoder_looks_only_near(shape):
    """A decoder that looks one latent around: tiles give the same but at their borders, which are blended."""
    latents = jax.random.normal(jax.random.key(0), (2, *shape, 3))

    def decode(z):
        blurred = jax.lax.conv_general_dilated(
            z, jnp.ones((3, 3, 1, 3)) / 9, (1, 1), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3,
        )  # fmt: skip
        return jnp.repeat(jnp.repeat(blurred, 2, axis=1), 2, axis=2)

    whole, tiled = decode(latents), decode_in_tiles(decode, latents, 2, tile=16, overlap=4)
    assert tiled.shape == whole.shape
    difference = np.abs(np.asarray(tiled - whole))
    assert (difference > 1e-5).mean() < (0.25 if shape != (16, 16) else 1e-9)
    assert difference.max() < 0.25


def test_tiles_lie_where_their_latents_are():
    """A pointwise decoder of a ramp: every tile must be put at its own place, and none be missing."""
    ramp = jnp.arange(131.0)[:, None] + 1000 * jnp.arange(257.0)
    latents = jnp.broadcast_to(ramp[None, ..., None], (1, 131, 257, 3))

    def decode(z):
        return jnp.repeat(jnp.repeat(z, 8, axis=1), 8, axis=2)

    # Of float32 sums of at most four weights, and values up to 256,130.
    np.testing.assert_allclose(decode_in_tiles(decode, latents, 8), decode(latents), rtol=1e-5)
