"""Image tower configs: written as transformers' types where these fit, else as our own type."""

import dataclasses
import importlib.util

import pytest
import transformers
from transformers import AutoConfig

from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.weights.configs import read_vision, vision_to_json

SIZES = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
CLIP = ViTConfig(**SIZES)
DINO = dataclasses.replace(CLIP, pre_norm=False, patch_bias=True, layer_scale=True, projection_dim=None)
SIGLIP = dataclasses.replace(DINO, layer_scale=False, class_token=False)

TYPES = {
    "clip_vision_model": CLIP,
    "siglip_vision_model": SIGLIP,
    "dinov2": DINO,
    "dinov2_with_registers": dataclasses.replace(DINO, registers=4),
}
OWN_TYPE = {
    "CLIP without a class token": dataclasses.replace(CLIP, class_token=False),
    "CLIP with biased patches": dataclasses.replace(CLIP, patch_bias=True),
    "CLIP with registers": dataclasses.replace(CLIP, registers=4),
    "SigLIP with a projection": dataclasses.replace(SIGLIP, projection_dim=16),
    "DINOv2 whose class token has no position": dataclasses.replace(DINO, position_prefix=False),
    "DINOv2 without layer scale": dataclasses.replace(DINO, layer_scale=False),
}


@pytest.mark.parametrize("kind", TYPES)
def test_known_tower_is_written_as_transformers_type(kind):
    values = vision_to_json(TYPES[kind])
    assert values["model_type"] == kind
    config = AutoConfig.for_model(**values)
    assert config.hidden_size == 32
    if importlib.util.find_spec("torch"):  # without it transformers 5 has no such classes
        assert getattr(transformers, values["architectures"][0]).config_class is type(config)
    assert read_vision(values, "the tower") == TYPES[kind]


def test_position_prefix_is_ignored_without_class_token():
    """timm's SigLIP is read without one, transformers' with one."""
    values = vision_to_json(dataclasses.replace(SIGLIP, position_prefix=False))
    assert values["model_type"] == "siglip_vision_model"


@pytest.mark.parametrize("name", OWN_TYPE)
def test_unknown_tower_is_written_as_own_type(name):
    values = vision_to_json(OWN_TYPE[name])
    with pytest.raises(ValueError, match="realcustom_vit"):
        AutoConfig.for_model(**values)
    assert read_vision(values, "the tower") == OWN_TYPE[name]
