"""Decoding of latents to images, in slices of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import realcustom_jax as rc
from realcustom_jax.outputs import decode


@pytest.mark.parametrize(("count", "sizes"), [(7, [3, 3, 3]), (5, [3, 3]), (4, [2, 2]), (3, [3]), (1, [1])])
def test_decoded_slices_share_one_program(micro_pipe, monkeypatch, count, sizes):
    """Slices of at most 3 images, the last one padded; each image equals that of its latents alone."""
    traced = []

    def spy(models, params, latents):  # called when a program is traced
        traced.append(len(latents))
        return original(models, params, latents)

    original, decode_alone = decode.decode_rows, jax.jit(decode.decode, static_argnums=0)
    latents = jax.random.normal(jax.random.key(count), (count, 8, 8, 4))
    alone = [
        np.asarray(decode_alone(micro_pipe.models, micro_pipe.params["vae"], one[None]))[0] for one in latents
    ]
    monkeypatch.setattr(decode, "decode_rows", spy)
    monkeypatch.setattr(decode, "_DECODED_AT_ONCE", 3 * 16 * 16 + 1)
    ran = []
    run = decode.run_rows
    monkeypatch.setattr(decode, "run_rows", lambda *x: (ran.append(len(x[-1])), run(*x))[1])
    images = decode.images_of(micro_pipe, latents)
    assert ran == sizes and traced == sizes[:1]
    assert images.shape == (count, 16, 16, 3) and np.abs(images.astype(int) - alone).max() <= 1
    with pytest.raises(rc.UserError, match=f"the result of request {count - 1} is not finite"):
        decode.images_of(micro_pipe, latents.at[-1].set(jnp.nan))
