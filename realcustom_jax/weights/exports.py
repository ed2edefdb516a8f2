"""Exports of a model's weights in the formats of other software. `folder.py` writes the model folder."""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_json
from realcustom_jax.models.config import RealCustomConfig
from realcustom_jax.models.family import IMAGE, TEXT
from realcustom_jax.weights.components import check_dtype, to_tensors, weights_name, write_params
from realcustom_jax.weights.configs import timm_heads
from realcustom_jax.weights.folder import Model, component_json
from realcustom_jax.weights.keys import flatten, split_added, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS, FLAX, TIMM
from realcustom_jax.weights.official import CONFIG_KEY
from realcustom_jax.weights.original import original_base, original_layouts
from realcustom_jax.weights.tensors import Tensors, write_tensors
from realcustom_jax.weights.towers import without_class_position


def export_unet(model: Model, path: Path, dtype: str) -> None:
    """Write the UNet with everything that RealCustom adds to one file, like the published checkpoint.

    Args:
      model: the model.
      path: ends in .safetensors, or in .pth for PyTorch's own format.
      dtype: one of `WEIGHT_DTYPES`.
    """
    check_dtype(dtype)
    # `sys.maxsize`: the published code loads one file, so no shards whatever the size.
    write_params(path, DIFFUSERS, model.params["unet"], dtype, sys.maxsize)


def export_added(model: Model, path: Path, dtype: str) -> None:
    """Like `export_unet`, but only with the parameters that RealCustom adds.

    Raises:
      UserError: the model has none.
    """
    check_dtype(dtype)
    _, added = split_added(model.params["unet"])
    if not flatten(added):
        raise UserError("this model has nothing that RealCustom adds")
    write_params(path, DIFFUSERS, added, dtype, sys.maxsize)


def write_added(folder: Path, config: RealCustomConfig, added: Mapping[str, Any], dtype: str) -> None:
    """Write a `realcustom/` folder without its `sampling.json`.

    Args:
      folder: the folder.
      config: config of the added layers.
      added: {path in the UNet: values} of the added parameters.
      dtype: one of `WEIGHT_DTYPES`.
    """
    write_json(folder / "config.json", dataclasses.asdict(config))
    write_params(folder / weights_name("realcustom"), DIFFUSERS, unflatten(added), dtype, sys.maxsize)


def write_published(path: Path, config: RealCustomConfig, params: Mapping[str, Any], dtype: str) -> None:
    """Write UNet parameters, given by their paths, to one file with the keys of the published checkpoint."""
    tensors = to_tensors(DIFFUSERS, unflatten(params), dtype)
    # The published format has no config, and shapes do not show everything, such as the feature layers.
    metadata = {CONFIG_KEY: json.dumps(dataclasses.asdict(config))}
    write_tensors(path, tensors, sys.maxsize, metadata)


def export_original(model: Model, path: Path, dtype: str) -> None:
    """Write the base model as an original one-file checkpoint of SD1.5 or SDXL.

    Args:
      model: the model. Image towers and the parameters that RealCustom adds are left out.
      path: see `export_unet`.
      dtype: one of `WEIGHT_DTYPES`.

    Raises:
      UserError: the format has no config, and readers would take this model for another one.
    """
    check_dtype(dtype)
    base, _ = split_added(model.params["unet"])
    tensors = {}
    for name, (prefix, layout) in original_layouts(len(model.models.text_configs)).items():
        params = base if name == "unet" else model.params[name]
        tensors |= to_tensors(layout, params, dtype, prefix)
    # Read the file as others will, before it is written, and compare the configs.
    shapes = Tensors(str(path), {key: value.shape for key, value in tensors.items()}, tensors.__getitem__)
    read = original_base(shapes, [Path()] * len(model.models.text_configs))
    configs = dict(zip(TEXT, read.texts, strict=False)) | {"unet": read.unet, "vae": read.vae}
    for name, config in configs.items():
        ours = model.models.configs[name]
        if name in TEXT and ours.eos_token_id == 2:
            # Old configs of CLIP say 2, and transformers then uses the last token of the vocabulary.
            ours = dataclasses.replace(ours, eos_token_id=ours.vocab_size - 1)
        _check_representable(name, ours, config)
    _check_representable("scheduler", model.schedule, read.schedule)
    write_tensors(path, tensors, sys.maxsize)


# Defaults of sampling: they do not change what a forward pass computes.
_SAMPLING_FIELDS = ("sample_size", "timestep_spacing", "steps_offset")
# {field that is one value or one value per level: the property with one value per level}
_BY_LEVEL = {
    "attention_head_dim": "heads",
    "transformer_layers_per_block": "depths",
    "self_attention": "self_attentions",
}


def _check_representable(name: str, ours: Any, read: Any) -> None:
    """Raise `UserError` if a field of our config differs from the config that a reader of the file gets."""
    for field in dataclasses.fields(ours):
        attribute = _BY_LEVEL.get(field.name, field.name)
        has, seen = getattr(ours, attribute), getattr(read, attribute)
        if has != seen and field.name not in _SAMPLING_FIELDS:
            raise UserError(
                f"an original checkpoint cannot store that {name}.{field.name} is {has}: it is read as {seen}"
            )


def export_flax(model: Model, folder: Path, dtype: str) -> None:
    """Write every component for diffusers' and transformers' Flax models: `config.json` and `.msgpack`."""
    check_dtype(dtype)
    base, _ = split_added(model.params["unet"])
    for name, config in model.models.configs.items():
        # The file names that `FlaxModelMixin` of diffusers and `FlaxPreTrainedModel` of transformers expect.
        stem = "diffusion_flax_model" if name in ("unet", "vae") else "flax_model"
        params = base if name == "unet" else model.params[name]
        write_json(folder / name / "config.json", component_json(name, config))
        write_params(folder / name / f"{stem}.msgpack", FLAX, params, dtype)


def export_timm(model: Model, folder: Path, dtype: str) -> None:
    """Write the SigLIP and DINOv2 towers as timm folders.

    Raises:
      UserError: there is no tower, a tower is a CLIP, or its number of heads does not fit timm's rule.
    """
    check_dtype(dtype)
    if not model.models.image_configs:
        raise UserError("this model has no image tower")
    for name, config in zip(IMAGE, model.models.image_configs, strict=False):
        if config.pre_norm:
            raise UserError(f"{name} is a CLIP tower; only SigLIP and DINOv2 are exported to timm's layout")
        kind = "dinov2" if config.class_token else "siglip"
        # timm files have no number of heads: it follows from the architecture's name. Only this one differs
        # from C / 64.
        size = "so400m" if config.hidden_size == 16 * 72 else "custom"
        if config.num_attention_heads != timm_heads(size, config.hidden_size):
            raise UserError(f"{name} has {config.num_attention_heads} heads, which timm's files cannot store")
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
