"""Our VAE against diffusers' AutoencoderKL, small and with random parameters."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

from realcustom_jax.models.config import from_mapping  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.vae import VAE, VAEConfig  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))


def test_vae_equals_diffusers():
    """Mean, log-variance and decoded image, not square.

    A second time with weak inputs to the norms, so that their epsilon (1e-6) matters.
    """
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(4, 8, 12),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=3,
        norm_num_groups=2,
        scaling_factor=0.3,
    )
    config = from_mapping(VAEConfig, theirs.config)
    vae, rng = VAE(config), np.random.default_rng(3)
    images = rng.uniform(-1, 1, (2, 12, 20, 3)).astype(np.float32)
    latents = rng.standard_normal((2, 3, 5, 3)).astype(np.float32)
    shapes = param_shapes(vae, images)

    @jax.jit
    def run(params, images, latents):
        def both(module):
            return (*module.moments(images), module.decode(latents))

        return vae.apply({"params": params}, method=both)

    for weak in (None, "conv_in|conv2|conv_shortcut|to_out"):
        common.randomise(theirs, seed=4, weak=weak)
        params = common.our_params(shapes, common.numpy_state(theirs))
        posterior = theirs.encode(common.planes(images)).latent_dist
        # Our latents are scaled, theirs are not.
        decoded = theirs.decode(common.planes(latents) / 0.3).sample
        ours = run(params, images, latents)
        for value, expected in zip(ours, (posterior.mean, posterior.logvar, decoded), strict=True):
            common.assert_close(value, common.pixels(expected))
