"""A model's weights in the forms that others read, beside the model folder that `folder.py` writes."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.models.config import RealCustomConfig
from realcustom_jax.models.family import IMAGE, TEXT
from realcustom_jax.weights.components import check_dtype, to_tensors, weights_name, write_json, write_params
from realcustom_jax.weights.configs import timm_heads
from realcustom_jax.weights.folder import Model, component_json
from realcustom_jax.weights.keys import flatten, split_added, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS, FLAX, TIMM
from realcustom_jax.weights.official import CONFIG_KEY
from realcustom_jax.weights.original import original_base, original_layouts
from realcustom_jax.weights.tensors import Tensors, write_tensors
from realcustom_jax.weights.towers import without_class_position


def export_unet(model: Model, path: Path, dtype: str) -> None:
    """One file with the whole UNet and all that RealCustom adds, as the published checkpoint is.

    Args:
      model: the model.
      path: ends in .safetensors, or in .pth for PyTorch's own format.
      dtype: one of `WEIGHT_DTYPES`.
    """
    check_dtype(dtype)
    write_params(path, DIFFUSERS, model.params["unet"], dtype, sys.maxsize)


def export_added(model: Model, path: Path, dtype: str) -> None:
    """As `export_unet`, with only what RealCustom adds.

    Raises:
      UserError: for a model without.
    """
    check_dtype(dtype)
    _, added = split_added(model.params["unet"])
    if not flatten(added):
        raise UserError("this model has nothing that RealCustom adds")
    write_params(path, DIFFUSERS, added, dtype, sys.maxsize)


def write_added(folder: Path, config: RealCustomConfig, added: Mapping[str, Any], dtype: str) -> None:
    """A `realcustom/` folder, but for `sampling.json`.

    Args:
      folder: to write into.
      config: the shape of what RealCustom adds.
      added: its parameters, by their paths in the UNet.
      dtype: one of `WEIGHT_DTYPES`.
    """
    write_json(folder / "config.json", dataclasses.asdict(config))
    write_params(folder / weights_name("realcustom"), DIFFUSERS, unflatten(added), dtype, sys.maxsize)


def write_published(path: Path, config: RealCustomConfig, params: Mapping[str, Any], dtype: str) -> None:
    """One file of UNet parameters, by their paths, named as the published checkpoint names them.

    The file's metadata has the config, which shapes alone do not always tell.
    """
    tensors = to_tensors(DIFFUSERS, unflatten(params), dtype)
    metadata = {CONFIG_KEY: json.dumps(dataclasses.asdict(config))}
    write_tensors(path, tensors, sys.maxsize, metadata)


def export_original(model: Model, path: Path, dtype: str) -> None:
    """The base model as an original one-file checkpoint of SD1.5 or SDXL.

    Args:
      model: the model; its image towers and what RealCustom adds are left out.
      path: as in `export_unet`.
      dtype: one of `WEIGHT_DTYPES`.

    Raises:
      UserError: when such a file, which has no config, would be read as another model.
    """
    check_dtype(dtype)
    base, _ = split_added(model.params["unet"])
    tensors = {}
    for name, (prefix, layout) in original_layouts(len(model.models.text_configs)).items():
        params = base if name == "unet" else model.params[name]
        tensors |= to_tensors(layout, params, dtype, prefix)
    shapes = Tensors(str(path), {key: value.shape for key, value in tensors.items()}, tensors.__getitem__)
    read = original_base(shapes, [Path()] * len(model.models.text_configs))
    told = dict(zip(TEXT, read.texts, strict=False)) | {"unet": read.unet, "vae": read.vae}
    for name, config in told.items():
        ours = model.models.configs[name]
        if name in TEXT and ours.eos_token_id == 2:  # what old files say, and mean the last one by
            ours = dataclasses.replace(ours, eos_token_id=ours.vocab_size - 1)
        _check_told(name, ours, config)
    _check_told("scheduler", model.schedule, read.schedule)
    write_tensors(path, tensors, sys.maxsize)


# Defaults of sampling, which change nothing of what a pass computes.
_UNTOLD = ("sample_size", "timestep_spacing", "steps_offset")
# Fields that have one value or one a level → their values by level.
_BY_LEVEL = {
    "attention_head_dim": "heads",
    "transformer_layers_per_block": "depths",
    "self_attention": "self_attentions",
}


def _check_told(name: str, ours: Any, told: Any) -> None:
    """Raises `UserError` for a field that differs from what a reader of the file would take it for."""
    for field in dataclasses.fields(ours):
        attribute = _BY_LEVEL.get(field.name, field.name)
        has, seen = getattr(ours, attribute), getattr(told, attribute)
        if has != seen and field.name not in _UNTOLD:
            raise UserError(
                f"an original checkpoint cannot tell that {name}.{field.name} is {has}: it is read as {seen}"
            )


def export_flax(model: Model, folder: Path, dtype: str) -> None:
    """Every component as diffusers' and transformers' Flax models read it: `config.json` and `.msgpack`."""
    check_dtype(dtype)
    base, _ = split_added(model.params["unet"])
    for name, config in model.models.configs.items():
        stem = "diffusion_flax_model" if name in ("unet", "vae") else "flax_model"
        params = base if name == "unet" else model.params[name]
        write_json(folder / name / "config.json", component_json(name, config))
        write_params(folder / name / f"{stem}.msgpack", FLAX, params, dtype)


def export_timm(model: Model, folder: Path, dtype: str) -> None:
    """The SigLIP and DINOv2 towers as timm's folders.

    Raises:
      UserError: for a CLIP tower, one whose number of heads timm's files cannot tell, or without towers.
    """
    check_dtype(dtype)
    if not model.models.image_configs:
        raise UserError("this model has no image tower")
    for name, config in zip(IMAGE, model.models.image_configs, strict=False):
        if config.pre_norm:
            raise UserError(f"{name} is a CLIP tower; only SigLIP and DINOv2 are exported to timm's layout")
        kind = "dinov2" if config.class_token else "siglip"
        # timm tells the number of heads by the architecture's name; only this one's differs from C / 64.
        size = "so400m" if config.hidden_size == 16 * 72 else "custom"
        if config.num_attention_heads != timm_heads(size, config.hidden_size):
            raise UserError(f"{name} has {config.num_attention_heads} heads, which timm's files cannot tell")
        registers = f"_reg{config.registers}" if config.registers else ""
        side = config.image_size
        values = {
            "architecture": f"vit_{size}_patch{config.patch_size}{registers}_{kind}",
            "num_classes": 0,
            "num_features": config.hidden_size,
            "pretrained_cfg": {
                "input_size": [3, side, side],
                "mean": list(config.image_mean),
                "std": list(config.image_std),
            },
        }
        write_json(folder / name / "config.json", values)
        params = without_class_position(config, model.params[name])
        write_params(folder / name / "model.safetensors", TIMM, params, dtype)
