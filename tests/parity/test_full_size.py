"""The published models' parameter names and shapes, ours against theirs; nothing is allocated.

Their modules are made on PyTorch's meta device, ours by `jax.eval_shape`. The values are those of the
published config files.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")
diffusers = pytest.importorskip("diffusers", reason="needs the extra 'parity'")

import torch  # noqa: E402
import transformers  # noqa: E402

from realcustom_jax.models.clip_text import CLIPText, CLIPTextConfig  # noqa: E402
from realcustom_jax.models.config import UNetConfig, from_mapping  # noqa: E402
from realcustom_jax.models.family import unet_shapes  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.models.vae import VAE, VAEConfig  # noqa: E402
from realcustom_jax.models.vit import ViT, ViTConfig  # noqa: E402
from realcustom_jax.weights.keys import flatten, torch_key, torch_shape  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

UNETS = {
    "Stable Diffusion 1.5": {
        "sample_size": 64,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
    },
    "Stable Diffusion XL": {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 2,
        "cross_attention_dim": 2048,
        "attention_head_dim": (5, 10, 20),
        "transformer_layers_per_block": (1, 2, 10),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
VAE_VALUES = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
TEXTS = {
    "CLIP ViT-L/14": (False, {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "hidden_act": "quick_gelu", "projection_dim": 768, "vocab_size": 49408,
    }),
    "OpenCLIP bigG": (True, {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "hidden_act": "gelu", "projection_dim": 1280, "vocab_size": 49408,
    }),
}  # fmt: skip
CLIP_VISION = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
SIGLIP_SO400M = {
    "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
    "image_size": 384, "patch_size": 14,
}  # fmt: skip
DINOV2_LARGE = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 518, "patch_size": 14,
}  # fmt: skip


def their_shapes(make, unused: str | None = None) -> dict[str, tuple[int, ...]]:
    """{key: shape} of the module that `make` makes, without those that the regex finds."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in common.state(make(), unused).items()}


def our_shapes(shapes) -> dict[str, tuple[int, ...]]:
    return {torch_key(path): torch_shape(path, leaf.shape) for path, leaf in flatten(shapes).items()}


def images(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name):
    unet = UNet(from_mapping(UNetConfig, UNETS[name]))
    ours = our_shapes(unet_shapes(unet, text_tokens=77, visual_tokens=4, vision_dim=8))
    assert ours == their_shapes(lambda: diffusers.UNet2DConditionModel(**UNETS[name]))


def test_vae():
    ours = our_shapes(param_shapes(VAE(from_mapping(VAEConfig, VAE_VALUES)).init, images(64)))
    assert ours == their_shapes(lambda: diffusers.AutoencoderKL(**VAE_VALUES))


@pytest.mark.parametrize("name", TEXTS)
def test_text_encoder(name):
    projects, values = TEXTS[name]
    text = CLIPText(from_mapping(CLIPTextConfig, values | {"with_projection": projects}))
    ours = our_shapes(param_shapes(text.init, jax.ShapeDtypeStruct((1, 77), jnp.int32)))
    make = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    assert ours == their_shapes(lambda: make(transformers.CLIPTextConfig(**values)))


def test_clip_vision():
    ours = our_shapes(param_shapes(ViT(from_mapping(ViTConfig, CLIP_VISION)).init, images(224)))
    settings = transformers.CLIPVisionConfig(**CLIP_VISION)
    assert ours == their_shapes(lambda: transformers.CLIPVisionModelWithProjection(settings))


def test_siglip():
    """27×27 = 729 positions; the pooling head is not used."""
    config = from_mapping(
        ViTConfig,
        SIGLIP_SO400M | {"class_token": False, "pre_norm": False, "patch_bias": True, "projection_dim": None},
    )
    ours = our_shapes(param_shapes(ViT(config).init, images(384)))
    assert ours["vision_model.embeddings.position_embedding.weight"] == (729, 1152)
    settings = transformers.SiglipVisionConfig(**SIGLIP_SO400M)
    assert ours == their_shapes(lambda: transformers.SiglipVisionModel(settings), r"^vision_model\.head\.")


def test_dinov2_with_registers():
    config = ViTConfig(
        **DINOV2_LARGE, intermediate_size=4096, registers=4, pre_norm=False, patch_bias=True,
        layer_scale=True, projection_dim=None,
    )  # fmt: skip
    ours = our_shapes(param_shapes(ViT(config).init, images(518)))
    settings = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **DINOV2_LARGE)
    theirs = their_shapes(lambda: transformers.Dinov2WithRegistersModel(settings), "mask_token")
    named = {common.dino_key(key): shape for key, shape in theirs.items()}
    assert ours == {name: common.dino_shape(name, shape) for name, shape in named.items()}
