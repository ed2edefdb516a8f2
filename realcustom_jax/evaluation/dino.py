"""DINO ViT-S/16 (arXiv 2104.14294) in our vision transformer: its config and the names of its tensors."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from realcustom_jax.common.errors import UserError
from realcustom_jax.inputs import preprocess
from realcustom_jax.inputs.encoder_pair import ImageTower
from realcustom_jax.models.config import from_mapping
from realcustom_jax.models.vit import ViT, ViTConfig
from realcustom_jax.weights.components import find_weights, on_device, read_config, read_params
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.layouts import DINOV2, Entry, Layout, Shapes
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import tower_shapes

# transformers' ViT is like its DINOv2, without layer scales and with other names within a layer.
_NAMES = {
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def _entries(shapes: Shapes) -> list[Entry]:
    """The entries of DINOv2 with ViT's names."""
    entries = []
    for entry in DINOV2.entries(shapes):
        key = entry.key
        for theirs, name in _NAMES.items():
            key = re.sub(theirs, name, key)
        entries.append(dataclasses.replace(entry, key=key))
    return entries


# DINO never trained the pooler; files have a random one.
VIT = Layout("transformers' ViT", _entries, r"^pooler\.")


def load_dino(path: str | Path) -> ImageTower:
    """Load a DINO in the form of transformers' `ViTModel`, for example facebook/dino-vits16.

    An image's vector is the class token after the last norm.

    Args:
      path: a folder or a hub id.

    Raises:
      UserError: it is another kind of network, or its weights do not fit.
    """
    folder = find_folder(path)
    config = read_vit(read_config(folder), str(folder / "config.json"))
    tensors = open_tensors(find_weights(folder))
    params = read_params(tensors, (VIT,), tower_shapes(config), on_device(jnp.float32))
    # DINO's evaluation resizes to 256 pixels and crops 224; other sizes keep this ratio.
    short_side = preprocess.DINO.short_side * config.image_size // preprocess.DINO.crop
    prepare = dataclasses.replace(preprocess.DINO, short_side=short_side, crop=config.image_size)
    return ImageTower(ViT(config), params, prepare)


def read_vit(values: Mapping[str, Any], source: str) -> ViTConfig:
    """Read a `config.json` of transformers' ViT. `source` is its name in error messages."""
    if values.get("model_type") != "vit":
        raise UserError(
            f"{source}: DINO must be a model of type 'vit' of transformers, not {values.get('model_type')!r}"
        )
    if not values.get("qkv_bias", True):
        raise UserError(f"{source}: qkv_bias False is not supported")
    # ViT's config has none of these fields. The normalisation is ImageNet's, as in DINO's training.
    fixed = {
        "class_token": True,
        "registers": 0,
        "pre_norm": False,
        "patch_bias": True,
        "layer_scale": False,
        "projection_dim": None,
        "image_mean": (0.485, 0.456, 0.406),
        "image_std": (0.229, 0.224, 0.225),
    }
    defaults = {"hidden_act": "gelu", "layer_norm_eps": 1e-12}
    return from_mapping(ViTConfig, {**defaults, **values, **fixed}, source)
