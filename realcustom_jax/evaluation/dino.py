"""DINO ViT-S/16 in our vision transformer: its config and the names of its tensors."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from realcustom_jax.data import preprocess
from realcustom_jax.encoder_pair import ImageTower
from realcustom_jax.errors import UserError
from realcustom_jax.models.config import from_mapping
from realcustom_jax.models.vit import ViT, ViTConfig
from realcustom_jax.weights.components import find_weights, on_device, read_config, read_params
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.layouts import DINOV2, Entry, Layout, Shapes
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import tower_shapes

# transformers' ViT is its DINOv2 with other names for the parts of a layer, and without the scales.
_NAMES = {
    r"\.norm1\.": ".layernorm_before.",
    r"\.norm2\.": ".layernorm_after.",
    r"\.mlp\.fc1\.": ".intermediate.dense.",
    r"\.mlp\.fc2\.": ".output.dense.",
}


def _entries(shapes: Shapes) -> list[Entry]:
    entries = []
    for entry in DINOV2.entries(shapes):
        key = entry.key
        for theirs, name in _NAMES.items():
            key = re.sub(theirs, name, key)
        entries.append(dataclasses.replace(entry, key=key))
    return entries


VIT = Layout("transformers' ViT", _entries, r"^pooler\.")


def load_dino(path: str | Path) -> ImageTower:
    """DINO as transformers' `ViTModel` has it, for example facebook/dino-vits16: a folder or hub id.

    Its vector is the class token after the last norm; the pooler, which DINO never trained, is not used.

    Raises:
      UserError: for another kind of network, or when weights do not fit.
    """
    folder = find_folder(path)
    config = read_vit(read_config(folder), str(folder / "config.json"))
    tensors = open_tensors(find_weights(folder))
    params = read_params(tensors, (VIT,), tower_shapes(config), on_device(jnp.float32))
    # 256 pixels are resized to for 224 that are kept.
    short_side = preprocess.DINO.short_side * config.image_size // preprocess.DINO.crop
    prepare = dataclasses.replace(preprocess.DINO, short_side=short_side, crop=config.image_size)
    return ImageTower(ViT(config), params, prepare)


def read_vit(values: Mapping[str, Any], source: str) -> ViTConfig:
    """A `config.json` of transformers' ViT; `source` names it in errors."""
    if values.get("model_type") != "vit":
        raise UserError(
            f"{source}: DINO must be a model of type 'vit' of transformers, not {values.get('model_type')!r}"
        )
    if not values.get("qkv_bias", True):
        raise UserError(f"{source}: qkv_bias False is not supported")
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
