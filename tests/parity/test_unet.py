"""Our UNet against diffusers' PyTorch UNet, small and with random parameters."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import torch  # noqa: E402

from realcustom_jax.models.config import UNetConfig, from_mapping  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

SD15 = {
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 12,
    "attention_head_dim": 8,  # the number of heads, whatever its name says
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
SDXL = {
    "block_out_channels": (8, 16, 24),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 20,
    "attention_head_dim": (1, 2, 3),
    "transformer_layers_per_block": (1, 1, 2),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 10 + 6 * 6,
    "norm_num_groups": 4,
    "layers_per_block": 1,
}


@pytest.mark.parametrize("values", [SD15, SDXL], ids=["SD1.5", "SDXL"])
def test_unet_equals_diffusers(values):
    """Latents that are not square, and of odd size at the lowest level; one timestep per image.

    A second time with weak inputs to the norms, so that their epsilons matter: 1e-5 in the residual blocks
    and at the end, 1e-6 before the transformers.
    """
    theirs = diffusers.UNet2DConditionModel(sample_size=16, **values)
    config = from_mapping(UNetConfig, theirs.config)
    rng = np.random.default_rng(1)
    latents = rng.standard_normal((2, 12, 20, 4)).astype(np.float32)
    text = rng.standard_normal((2, 7, config.cross_attention_dim)).astype(np.float32)
    t, added = np.array([3.0, 981.0], np.float32), {}
    if config.addition_embed_type:
        sizes = [[512, 768, 0, 16, 512, 768], [96, 64, 5, 0, 128, 64]]
        added = {"pooled": rng.standard_normal((2, 10)).astype(np.float32), "time_ids": np.float32(sizes)}
    conditions = {"text_embeds" if k == "pooled" else k: torch.from_numpy(v) for k, v in added.items()}

    def run(module, latents, t, text, added):
        return module(latents, t, module.encode_context(text, **added))[0]

    unet = UNet(config)
    shapes = param_shapes(unet, latents, t, text, added, method=run)
    apply = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs, method=run))
    for weak in (None, "conv_in|conv2|conv_shortcut|proj_out"):
        common.randomise(theirs, seed=2, weak=weak)
        params = common.our_params(shapes, common.numpy_state(theirs))
        expected = theirs(
            common.planes(latents), torch.from_numpy(t), torch.from_numpy(text), added_cond_kwargs=conditions
        ).sample
        common.assert_close(apply(params, latents, t, text, added), common.pixels(expected))
