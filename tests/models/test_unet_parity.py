"""UNet and VAE against diffusers' architecture in float64 numpy, `reference_unet.py`; without PyTorch."""

import dataclasses
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from realcustom_jax.models.config import UNetConfig
from realcustom_jax.models.init import init_params, param_shapes
from realcustom_jax.models.unet import UNet
from realcustom_jax.models.vae import VAE, VAEConfig
from realcustom_jax.weights.keys import flatten, to_torch, torch_key, unflatten

reference = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reference_unet.py"))))
# Relative L2, float32 through a whole network against float64; measured 1e-6.
TOLERANCE = 1e-4

UNETS = {
    "SD1.5": UNetConfig(
        block_out_channels=(8, 16, 16),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
        norm_num_groups=4,
    ),
    "SDXL": UNetConfig(
        block_out_channels=(8, 16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=20,
        attention_head_dim=(1, 2, 3),
        transformer_layers_per_block=(1, 1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=6,
        projection_class_embeddings_input_dim=10 + 6 * 6,
        norm_num_groups=4,
    ),
    # Other values for options that are equal in both bases; the large ε separates the UNet's norms from the
    # transformers'.
    "other numbers": UNetConfig(
        in_channels=3,
        out_channels=5,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(2, 1),
        norm_num_groups=2,
        norm_eps=0.05,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
}


def draw_params(shapes, seed: int, weak: float = 1.0):
    """Parameters of which none is at a value that switches its layer off.

    `weak` multiplies the convolutions that end in a skip: at 1e-3 all norms see variances of about their ε.
    """
    rng = np.random.default_rng(seed)
    flat = flatten(init_params(shapes, seed))
    for path, value in flat.items():
        if path.endswith(("/bias", "/scale")):
            value = value + 0.3 * rng.standard_normal(value.shape)
        if re.search("(conv_in|conv2|conv_shortcut)/", path):
            value = weak * value
        flat[path] = value.astype(np.float32)
    return unflatten(flat)


def torch_state(params) -> dict[str, np.ndarray]:
    return {torch_key(path): to_torch(path, value) for path, value in flatten(params).items()}


def planes(x) -> np.ndarray:
    return np.moveaxis(np.asarray(x, np.float64), -1, 1)


def relative_error(value, expected) -> float:
    value, expected = np.asarray(value, np.float64), np.asarray(expected, np.float64)
    assert value.shape == expected.shape and np.abs(expected).max() > 1e-3
    return float(np.linalg.norm(value - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", UNETS)
def test_unet_equals_numpy_reference(name):
    """Latents that are not square, two images at different timesteps; every parameter takes part.

    Also the self-attention of level 1, averaged over its heads and layers.
    """
    config = UNETS[name]
    rng = np.random.default_rng(1)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    added = {}
    if config.addition_embed_type:
        added = {"pooled": draw(2, 10), "time_ids": rng.integers(0, 1024, (2, 6)).astype(np.float32)}
    latents, text = draw(2, 4, 8, config.in_channels), draw(2, 7, config.cross_attention_dim)
    t = np.asarray([981.0, 3.0], np.float32)

    def run(module, latents, t, text, added):
        return module(latents, t, module.encode_context(text, **added), self_attention_level=1)

    unet = UNet(config)
    shapes = param_shapes(unet, latents, t, text, added, method=run)
    params = draw_params(shapes, seed=2, weak=1e-3 if config.norm_eps < 1e-3 else 1.0)
    apply = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs, method=run))
    weights = reference.Weights(torch_state(params))
    seen = [[] for _ in config.block_out_channels]
    expected = reference.unet(
        dataclasses.asdict(config), weights, planes(latents), t, text, **added, seen=seen
    )
    assert weights.used == weights.state.keys()
    prediction, aux = apply(params, latents, t, text, added)
    assert relative_error(planes(prediction), expected) < TOLERANCE
    assert len(seen[1]) > 1
    assert relative_error(aux.self_attention, np.mean(seen[1], axis=0)) < TOLERANCE


@pytest.mark.parametrize("layers", [1, 2])
def test_vae_equals_numpy_reference(layers):
    """Mean and log-variance, scaled latents, images; sizes that are not square."""
    config = VAEConfig(
        latent_channels=3,
        block_out_channels=(4, 8, 12),
        layers_per_block=layers,
        norm_num_groups=2,
        scaling_factor=0.3,
    )
    vae, rng = VAE(config), np.random.default_rng(3)
    images = rng.uniform(-1, 1, (2, 8, 16, 3)).astype(np.float32)
    latents = rng.standard_normal((2, 2, 4, 3)).astype(np.float32)
    params = draw_params(param_shapes(vae, images), seed=4, weak=1e-3)
    weights, values = reference.Weights(torch_state(params)), dataclasses.asdict(config)
    mean, log_variance = reference.vae_encode(values, weights, planes(images))
    decoded = reference.vae_decode(values, weights, planes(latents) / config.scaling_factor)
    assert weights.used == weights.state.keys()

    @jax.jit
    def run(params, images, latents):
        def both(module):
            return *module.moments(images), module.encode(images), module.decode(latents)

        return vae.apply({"params": params}, method=both)

    ours = run(params, images, latents)
    for value, expected in zip(
        ours, (mean, log_variance, mean * config.scaling_factor, decoded), strict=True
    ):
        assert relative_error(planes(value), expected) < TOLERANCE
