"""Conversion between our config dataclasses and the `config.json` files of diffusers, transformers and timm.

Base models have the same field names as ours. A field that we do not have may change what the network
computes, so unsupported values are rejected. For image towers, transformers leaves defaults out of its files
and has another form for each family; timm leaves out nearly everything.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import read_json
from realcustom_jax.common.rules import shown
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.clip_text import CLIPTextConfig
from realcustom_jax.models.config import UNetConfig, from_mapping
from realcustom_jax.models.vae import VAEConfig
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.weights.keys import explain_shape_errors
from realcustom_jax.weights.tensors import Tensors

# {field: the values for which our modules compute the same as diffusers'}. A missing field is fine.
_UNET = {
    "act_fn": ("silu",),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_attention_heads": (None,),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_VAE = {
    "act_fn": ("silu",),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0.0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_SCHEDULE = {
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "trained_betas": (None,),
    "use_flow_sigmas": (False,),
}
# (mean, std) of the three families' input normalisation.
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_OPENAI = (ViTConfig.image_mean, ViTConfig.image_std)


def read_unet(values: Mapping[str, Any], source: str) -> UNetConfig:
    """Read a UNet's config. Like all readers here, it raises `UserError` for unsupported values.

    Args:
      values: contents of `config.json`.
      source: name of the model, for messages.
    """
    _reject(values, _UNET, source)
    return from_mapping(UNetConfig, values, source)


def read_vae(values: Mapping[str, Any], source: str) -> VAEConfig:
    """Read a VAE's config; see `read_unet`."""
    _reject(values, _VAE, source)
    return from_mapping(VAEConfig, values, source)


def read_schedule(values: Mapping[str, Any], source: str) -> ScheduleConfig:
    """Read a scheduler's config; see `read_unet`."""
    _reject(values, _SCHEDULE, source)
    return from_mapping(ScheduleConfig, values, source)


def _reject(values: Mapping[str, Any], allowed: Mapping[str, tuple], source: str) -> None:
    """Raise `UserError` for a field with a value that is not allowed."""
    for name, known in allowed.items():
        if name in values and values[name] not in known:
            raise UserError(f"{source}: {name} {values[name]!r} is not supported, only {known[0]!r}")


def read_text(values: Mapping[str, Any], source: str) -> CLIPTextConfig:
    """Read the config of transformers' `CLIPTextModel` or `CLIPTextModelWithProjection`."""
    values = _with_defaults({"model_type": "clip_text_model", **values}, source)
    # Only `architectures` shows whether the text is projected: both classes have a projection_dim.
    projects = "CLIPTextModelWithProjection" in _architectures(values)
    return from_mapping(CLIPTextConfig, {"with_projection": projects, **values}, source)


def _architectures(values: Mapping[str, Any]) -> Sequence[Any]:
    """Class names of transformers; empty if the file has no list of them."""
    names = values.get("architectures")
    return names if isinstance(names, (list, tuple)) else ()


def text_to_json(config: CLIPTextConfig) -> dict[str, Any]:
    """Contents of a text encoder's `config.json`; the inverse of `read_text`."""
    projection = "WithProjection" if config.with_projection else ""
    return {
        **dataclasses.asdict(config),
        "architectures": [f"CLIPTextModel{projection}"],
        "model_type": "clip_text_model",
    }


# ---------------------------------------------------------------- image towers


def read_vision(
    values: Mapping[str, Any], source: str, preprocessor: Mapping[str, Any] | None = None
) -> ViTConfig:
    """Read the config of an image tower: CLIP, SigLIP or DINOv2 of transformers, or our own.

    Args:
      values: contents of `config.json`, also of a model with a text tower. Our own field names win.
      source: name of the tower, for messages.
      preprocessor: contents of `preprocessor_config.json`, for the normalisation; default: the family's.
    """
    kind = values.get("model_type")
    if kind in ("clip", "siglip"):
        # The config of a whole model has that of its image tower in `vision_config`.
        outer = {"projection_dim": values["projection_dim"]} if "projection_dim" in values else {}
        inner = values.get("vision_config", {})
        if not isinstance(inner, Mapping):
            raise UserError(f"{source}: vision_config must be an object, not {shown(inner)}")
        values = {**inner, **outer, "model_type": f"{kind}_vision_model"}
        if kind == "clip":
            values["architectures"] = ["CLIPVisionModelWithProjection"]
        return read_vision(values, source, preprocessor)
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise UserError(
            f"{source}: an image tower of type {kind!r} is not known; known: {', '.join(_FAMILIES)}"
        )
    values = _with_defaults(values, source)
    if values.get("use_swiglu_ffn"):
        raise UserError(f"{source}: use_swiglu_ffn is not supported")
    family = dict(_FAMILIES[kind])
    if kind == "clip_vision_model" and "CLIPVisionModel" in _architectures(values):
        values["projection_dim"] = None  # this class has no projection, whatever the field says
    if kind.startswith("dinov2"):
        family["registers"] = values.get("num_register_tokens", 0)
        family["intermediate_size"] = _product(values, "hidden_size", "mlp_ratio", source)
    preprocessor = preprocessor or {}
    given = {name: preprocessor[name] for name in ("image_mean", "image_std") if name in preprocessor}
    return from_mapping(ViTConfig, {**family, **given, **values}, source)


def _product(values: Mapping[str, Any], first: str, second: str, source: str) -> int:
    try:
        return int(values[first] * values[second])
    except (TypeError, ValueError, OverflowError):
        given = f"{shown(values[first])} and {shown(values[second])}"
        raise UserError(f"{source}: {first} and {second} must be numbers, not {given}") from None


def vision_to_json(config: ViTConfig) -> dict[str, Any]:
    """Contents of an image tower's `config.json`, with transformers' field names and ours."""
    # A tower that no class of transformers computes gets our own type, so that transformers rejects it.
    values, kind = dataclasses.asdict(config), _kind(config)
    architecture = _ARCHITECTURES[kind]
    if kind == "clip_vision_model" and config.projection_dim is not None:
        architecture += "WithProjection"
    if kind not in ("clip_vision_model", OWN):
        del values["projection_dim"]
    if kind.startswith("dinov2"):
        ratio, rest = divmod(config.intermediate_size, config.hidden_size)
        # transformers 5 accepts only integers here.
        values["mlp_ratio"] = config.intermediate_size / config.hidden_size if rest else ratio
    if config.registers:
        values["num_register_tokens"] = config.registers
    return {**values, "architectures": [architecture], "model_type": kind}


def _kind(config: ViTConfig) -> str:
    """Model type of transformers that computes the same as a tower, whatever its sizes; `OWN` if none."""
    for kind, family in _FAMILIES.items():
        # Only CLIP has a projection, and only one family registers.
        expected = ViTConfig(
            registers=config.registers if kind == "dinov2_with_registers" else 0,
            **{"projection_dim": config.projection_dim, **family},
        )
        parts = ["class_token", "registers", "pre_norm", "patch_bias", "layer_scale", "projection_dim"]
        parts += ["position_prefix"] if config.class_token else []
        if all(getattr(config, part) == getattr(expected, part) for part in parts):
            return kind
    return OWN


def _family(normalisation: tuple, **fields: Any) -> dict[str, Any]:
    return {"image_mean": normalisation[0], "image_std": normalisation[1], **fields}


OWN = "realcustom_vit"  # model_type of towers that only this package can compute
_ARCHITECTURES = {
    "clip_vision_model": "CLIPVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "dinov2": "Dinov2Model",
    OWN: "ViT",
}
_PLAIN = {"pre_norm": False, "patch_bias": True, "projection_dim": None}
_FAMILIES = {
    "clip_vision_model": _family(_OPENAI),
    "siglip_vision_model": _family(_HALF, class_token=False, **_PLAIN),
    "dinov2": _family(_IMAGENET, layer_scale=True, **_PLAIN),
    "dinov2_with_registers": _family(_IMAGENET, layer_scale=True, **_PLAIN),
    OWN: _family(_OPENAI),
}


def _with_defaults(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Add the defaults of the model class, which transformers leaves out of its files."""
    if values["model_type"] == OWN:
        return dict(values)
    try:
        return {**AutoConfig.for_model(values["model_type"]).to_dict(), **values}
    except (ValueError, TypeError):  # TypeError: model_type is not text
        raise UserError(f"{source}: model_type {values['model_type']!r} is not known") from None


def read_timm(values: Mapping[str, Any], tensors: Tensors) -> ViTConfig:
    """Read the config of a timm tower (SigLIP, DINOv2) from its `config.json` and its weights' shapes.

    Raises:
      UserError: it has another architecture.
    """
    name, pretrained = str(values.get("architecture")), values.get("pretrained_cfg", {})
    if not isinstance(pretrained, Mapping):
        raise UserError(f"{tensors.source}: pretrained_cfg of its config must be an object")
    if not re.search(r"siglip|dinov2", name) or "patch_embed.proj.weight" not in tensors.shapes:
        raise UserError(
            f"{tensors.source}: timm's {name} is not supported, only SigLIP and DINOv2 towers are"
        )
    with explain_shape_errors(tensors.source):
        sizes = _timm_sizes(name, tensors.shapes)
    normalisation = _HALF if "siglip" in name else _IMAGENET
    fixed = {
        "hidden_act": "gelu_pytorch_tanh" if "siglip2" in name else "gelu",
        "layer_norm_eps": 1e-6,
        "projection_dim": None,
        "pre_norm": False,
        "patch_bias": True,
        "image_mean": pretrained.get("mean", normalisation[0]),
        "image_std": pretrained.get("std", normalisation[1]),
    }
    return from_mapping(ViTConfig, {**sizes, **fixed}, tensors.source)


def _timm_sizes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Fields of `ViTConfig` from the shapes of a tower's tensors."""
    hidden, _, patch, _ = shapes["patch_embed.proj.weight"]  # OIHW
    class_token, patches = "cls_token" in shapes, shapes["pos_embed"][1]
    registers = shapes["reg_token"][1] if "reg_token" in shapes else 0
    # In timm, DINOv2's class token has a position embedding only in models without registers.
    position_prefix = class_token and not registers
    return {
        "image_size": round((patches - position_prefix) ** 0.5) * patch,
        "patch_size": patch,
        "hidden_size": hidden,
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "num_hidden_layers": sum(bool(re.fullmatch(r"blocks\.\d+\.norm1\.weight", key)) for key in shapes),
        "num_attention_heads": timm_heads(name, hidden),
        "class_token": class_token,
        "registers": registers,
        "position_prefix": position_prefix,
        "layer_scale": "blocks.0.ls1.gamma" in shapes,
    }


def timm_heads(architecture: str, hidden: int) -> int:
    """Number of heads: 64 channels each, except the "shape-optimised" SigLIP with 16 heads of 72."""
    return 16 if "so400m" in architecture else hidden // 64


def read_tower_folder(folder: Path, values: Mapping[str, Any], tensors: Tensors) -> ViTConfig:
    """Read the config of a tower's folder, in transformers' or timm's form."""
    if "architecture" in values:  # transformers has "architectures"
        return read_timm(values, tensors)
    path = folder / "preprocessor_config.json"
    preprocessor = read_json(path) if path.exists() else None
    return read_vision(values, str(folder / "config.json"), preprocessor)
