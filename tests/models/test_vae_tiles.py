"""Decoding in tiles against decoding at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from realcustom_jax.models.vae_tiles import decode_in_tiles


@pytest.mark.parametrize("shape", [(16, 16), (40, 16), (37, 50)])
def test_tiled_decoding_equals_whole_for_local_decoder(shape):
    """A decoder with a radius of one latent: tiles are equal except at their borders, which are blended."""
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


def test_tiles_are_placed_at_their_latents():
    """A pointwise decoder of a ramp shows a tile that is missing or in the wrong place."""
    ramp = jnp.arange(131.0)[:, None] + 1000 * jnp.arange(257.0)
    latents = jnp.broadcast_to(ramp[None, ..., None], (1, 131, 257, 3))

    def decode(z):
        return jnp.repeat(jnp.repeat(z, 8, axis=1), 8, axis=2)

    # float32 sums with at most four weights, of values up to 256,130.
    np.testing.assert_allclose(decode_in_tiles(decode, latents, 8), decode(latents), rtol=1e-5)
