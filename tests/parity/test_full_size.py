"""The published models' parameter names and shapes, ours against theirs; nothing is allocated.

Their modules are made on PyTorch's meta device, ours by `jax.eval_shape`.
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
from realcustom_jax.models.family import Models, unet_shapes  # noqa: E402
from realcustom_jax.models.init import param_shapes  # noqa: E402
from realcustom_jax.models.unet import UNet  # noqa: E402
from realcustom_jax.models.vae import VAE, VAEConfig  # noqa: E402
from realcustom_jax.models.vit import ViT, ViTConfig  # noqa: E402
from realcustom_jax.weights.keys import flatten, torch_key, torch_shape  # noqa: E402

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))
published = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("published.py"))))


def their_shapes(make, unused: str | None = None) -> dict[str, tuple[int, ...]]:
    """{key: shape} of the module that `make` returns, without keys that match the regex."""
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in common.state(make(), unused).items()}


def our_shapes(shapes) -> dict[str, tuple[int, ...]]:
    return {torch_key(path): torch_shape(path, leaf.shape) for path, leaf in flatten(shapes).items()}


def images(size: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)


@pytest.mark.parametrize("name", published.UNETS)
def test_unet_shapes_match_diffusers(name):
    unet = UNet(from_mapping(UNetConfig, published.UNETS[name]))
    ours = our_shapes(unet_shapes(unet, text_tokens=77, visual_tokens=4, vision_dim=8))
    assert ours == their_shapes(lambda: diffusers.UNet2DConditionModel(**published.UNETS[name]))


def test_vae_shapes_match_diffusers():
    ours = our_shapes(param_shapes(VAE(from_mapping(VAEConfig, published.VAE_VALUES)), images(64)))
    assert ours == their_shapes(lambda: diffusers.AutoencoderKL(**published.VAE_VALUES))


@pytest.mark.parametrize("name", published.TEXTS)
def test_text_encoder_shapes_match_transformers(name):
    projects, values = published.TEXTS[name]
    text = CLIPText(from_mapping(CLIPTextConfig, values | {"with_projection": projects}))
    ours = our_shapes(param_shapes(text, jax.ShapeDtypeStruct((1, 77), jnp.int32)))
    make = transformers.CLIPTextModelWithProjection if projects else transformers.CLIPTextModel
    assert ours == their_shapes(lambda: make(transformers.CLIPTextConfig(**values)))


def test_clip_vision_shapes_match_transformers():
    ours = our_shapes(param_shapes(ViT(from_mapping(ViTConfig, published.CLIP_VISION)), images(224)))
    settings = transformers.CLIPVisionConfig(**published.CLIP_VISION)
    assert ours == their_shapes(lambda: transformers.CLIPVisionModelWithProjection(settings))


def test_siglip_shapes_match_transformers():
    """27×27 = 729 positions; the pooling head is not used."""
    config = from_mapping(
        ViTConfig,
        published.SIGLIP_SO400M
        | {"class_token": False, "pre_norm": False, "patch_bias": True, "projection_dim": None},
    )
    ours = our_shapes(param_shapes(ViT(config), images(384)))
    assert ours["vision_model.embeddings.position_embedding.weight"] == (729, 1152)
    settings = transformers.SiglipVisionConfig(**published.SIGLIP_SO400M)
    assert ours == their_shapes(lambda: transformers.SiglipVisionModel(settings), r"^vision_model\.head\.")


def test_dinov2_with_registers_shapes_match_transformers():
    config = ViTConfig(
        **published.DINOV2_LARGE, intermediate_size=4096, registers=4, pre_norm=False, patch_bias=True,
        layer_scale=True, projection_dim=None,
    )  # fmt: skip
    ours = our_shapes(param_shapes(ViT(config), images(518)))
    settings = transformers.Dinov2WithRegistersConfig(num_register_tokens=4, **published.DINOV2_LARGE)
    theirs = their_shapes(lambda: transformers.Dinov2WithRegistersModel(settings), "mask_token")
    named = {common.dino_key(key): shape for key, shape in theirs.items()}
    assert ours == {name: common.dino_shape(name, shape) for name, shape in named.items()}


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_configs_match_published_values(name):
    """What configs/*.py tells the ahead-of-time compiler, field by field, against the published values."""
    path = Path(__file__).resolve().parents[2] / "configs" / f"{name}.py"
    model = runpy.run_path(str(path))["get_config"]().model.to_dict()
    ours = Models.from_configs(model)
    base = published.UNETS["Stable Diffusion 1.5" if name == "sd15" else "Stable Diffusion XL"]
    wanted = {
        "unet": from_mapping(UNetConfig, base),
        "vae": from_mapping(
            VAEConfig, published.VAE_VALUES | {"scaling_factor": ours.vae_config.scaling_factor}
        ),
    }
    texts = list(published.TEXTS.values())[: len(ours.text_configs)]
    for key, (projects, values) in zip(("text_encoder", "text_encoder_2"), texts, strict=False):
        wanted[key] = from_mapping(CLIPTextConfig, values | {"with_projection": projects})
    for key, config in wanted.items():
        assert ours.configs[key] == config, key
    towers = [published.CLIP_VISION] if name == "sd15" else [
        published.SIGLIP_SO400M, published.DINOV2_LARGE | {"image_size": 384}
    ]  # fmt: skip
    for tower, values in zip(ours.image_configs, towers, strict=True):
        assert all(getattr(tower, field) == value for field, value in values.items())
