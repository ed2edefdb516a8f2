"""Our UNet and text encoder against the Flax models that diffusers had before 0.40 and transformers before 5.

They share our layout, so the parameters are ours as they are: an oracle without PyTorch's transpositions.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")  # diffusers imports no model without it
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import transformers  # noqa: E402

if not hasattr(diffusers, "FlaxUNet2DConditionModel") or not hasattr(transformers, "FlaxCLIPTextModel"):
    pytest.skip("these versions have no Flax models", allow_module_level=True)

from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig  # noqa: E402
from realcustom_jax.models.config import UNetConfig, from_mapping  # noqa: E402
from realcustom_jax.models.init import init_params, param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.weights.keys import flatten, unflatten  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

# diffusers' Flax GEGLU takes GELU's tanh approximation, off by up to 5e-4; PyTorch's and ours are exact.
GELU_TOLERANCE = 1e-3
UNET = {
    "block_out_channels": (32, 64),  # diffusers' Flax UNet always has 32 groups
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
}


def draw(shapes, seed: int):
    """Parameters of which none switches its layer off."""
    rng = np.random.default_rng(seed)
    flat = flatten(init_params(shapes, seed))
    noise = {path: 0.3 * rng.standard_normal(value.shape) for path, value in flat.items()}
    return unflatten(
        {
            path: (value + noise[path] if path.endswith(("bias", "scale")) else value).astype(np.float32)
            for path, value in flat.items()
        }
    )


def test_unet_equals_diffusers_flax():
    config = from_mapping(UNetConfig, UNET)
    unet, rng = UNet(config), np.random.default_rng(15)
    latents = rng.standard_normal((2, 6, 10, 4)).astype(np.float32)
    text = rng.standard_normal((2, 7, 12)).astype(np.float32)
    t = jnp.array([3, 981])

    def run(module, latents, t, text):
        return module(latents, t, module.encode_context(text))[0]

    params = draw(param_shapes(unet, latents, t, text, method=run), seed=16)
    ours = jax.jit(lambda p: unet.apply({"params": p}, latents, t, text, method=run))(params)
    theirs = diffusers.FlaxUNet2DConditionModel(sample_size=16, **UNET)
    planes = np.moveaxis(latents, -1, 1)
    with jax.numpy_dtype_promotion("standard"):  # their modules multiply timesteps, which are integers
        expected = jax.jit(lambda p: theirs.apply({"params": p}, planes, t, text).sample)(params)
    common.assert_close(ours, np.moveaxis(np.asarray(expected), 1, -1), GELU_TOLERANCE)


def test_text_encoder_equals_transformers_flax():
    settings = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=9, eos_token_id=40,
    )  # fmt: skip
    ids = np.array([[38, 5, 45, 40, 7, 7, 7, 7, 7], [38, 45, 9, 9, 1, 8, 3, 40, 40]])
    text = CLIPText(from_mapping(CLIPTextConfig, settings.to_dict()))
    params = draw(param_shapes(text, ids), seed=17)
    ours = jax.jit(lambda p: text.apply({"params": p}, ids))(params)
    # transformers nests the list of layers one level deeper.
    renamed = unflatten({path.replace("layers_", "layers/"): v for path, v in flatten(params).items()})
    with jax.numpy_dtype_promotion("standard"):
        theirs = transformers.FlaxCLIPTextModel(settings, _do_init=False)
        out = theirs(ids, params=renamed, output_hidden_states=True)
    common.assert_close(ours.last, out.last_hidden_state)
    common.assert_close(ours.penultimate, out.hidden_states[-2])
    common.assert_close(ours.pooled, out.pooler_output)
