"""Our vision transformer against transformers' CLIP, SigLIP and DINOv2, small and with random parameters."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra 'parity'")

import transformers

from realcustom_jax.models.config import from_mapping
from realcustom_jax.models.init import param_shapes
from realcustom_jax.models.vit import ViT, ViTConfig

common = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("common.py"))))

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
# A second time with weak embeddings and branches, so that the norms' epsilons matter.
WEAK = (None, "embedding|cls_token|register|out_proj|output.dense|fc2")


def run_ours(config: ViTConfig):
    """A jitted run of the tower on some images, the parameters' shapes, and the images as `pixel_values`."""
    tower = ViT(config)
    images = np.random.default_rng(6).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    apply = jax.jit(lambda params: tower.apply({"params": params}, images))
    mean, std = np.float32(config.image_mean), np.float32(config.image_std)
    return apply, param_shapes(tower, images), common.planes((images * 0.5 + 0.5 - mean) / std)


def assert_states_close(ours, theirs) -> None:
    for state, expected in zip(ours.states, theirs.hidden_states, strict=True):
        common.assert_close(state, expected)


def test_vit_equals_transformers_clip():
    """All hidden states and the projected class token."""
    theirs = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(intermediate_size=40, projection_dim=6, **SIZES)
    )
    apply, shapes, pixel_values = run_ours(from_mapping(ViTConfig, theirs.config.to_dict()))
    for weak in WEAK:
        common.randomise(theirs, seed=7, weak=weak)
        ours = apply(common.our_params(shapes, common.numpy_state(theirs)))
        out = theirs(pixel_values, output_hidden_states=True)
        assert_states_close(ours, out)
        common.assert_close(ours.pooled, out.image_embeds)


def test_vit_equals_transformers_siglip():
    """All hidden states and the last one normed; the pooling head is not used."""
    theirs = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(intermediate_size=40, **SIZES))
    config = from_mapping(
        ViTConfig,
        theirs.config.to_dict()
        | {"class_token": False, "pre_norm": False, "patch_bias": True, "projection_dim": None},
    )
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    apply, shapes, pixel_values = run_ours(config)
    for weak in WEAK:
        common.randomise(theirs, seed=8, weak=weak)
        ours = apply(common.our_params(shapes, common.numpy_state(theirs, unused=r"^vision_model\.head\.")))
        out = theirs(pixel_values, output_hidden_states=True)
        assert_states_close(ours, out)
        common.assert_close(ours.last, out.last_hidden_state)


@pytest.mark.parametrize("registers", [0, 3])
def test_vit_equals_transformers_dinov2(registers):
    """All hidden states and the last one normed, with and without registers."""
    if registers:
        settings = transformers.Dinov2WithRegistersConfig(num_register_tokens=registers, **SIZES)
        theirs = transformers.Dinov2WithRegistersModel(settings)
    else:
        theirs = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
    config = ViTConfig(
        **SIZES, intermediate_size=64, class_token=True, registers=registers, pre_norm=False, patch_bias=True,
        layer_scale=True, hidden_act="gelu", layer_norm_eps=1e-6, projection_dim=None,
    )  # fmt: skip
    apply, shapes, pixel_values = run_ours(config)
    for weak in WEAK:
        common.randomise(theirs, seed=9, weak=weak)
        state = {
            common.dino_key(key): value
            for key, value in common.numpy_state(theirs, unused="mask_token").items()
        }
        state = {name: value.reshape(common.dino_shape(name, value.shape)) for name, value in state.items()}
        ours = apply(common.our_params(shapes, state))
        out = theirs(pixel_values, output_hidden_states=True)
        assert_states_close(ours, out)
        common.assert_close(ours.last, out.last_hidden_state)
