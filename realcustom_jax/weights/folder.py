"""Writing a model folder that diffusers and transformers can read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_json
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.weights.bases import TOKENIZERS
from realcustom_jax.weights.components import check_dtype, weights_name, write_params
from realcustom_jax.weights.configs import text_to_json, vision_to_json
from realcustom_jax.weights.keys import split_added
from realcustom_jax.weights.layouts import DIFFUSERS, DINOV2, Layout
from realcustom_jax.weights.parts import COMPONENTS

_SCHEDULER = "DDIMScheduler"


class Model(Protocol):
    """The parts of a model that are written; a `Pipeline` has them.

    Attributes:
      models, schedule: modules and noise schedule.
      params: {component: its parameters}, as numpy, JAX or lazy arrays.
    """

    @property
    def models(self) -> Models: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def params(self) -> Mapping[str, Any]: ...


def write_folder(folder: Path, model: Model, dtype: str) -> None:
    """Write all components of a model folder, without tokenizers and sampling options.

    Raises:
      UserError: `dtype` is not one of `WEIGHT_DTYPES`.
    """
    check_dtype(dtype)
    _check_no_other_parts(folder, model.models)
    # `unet/` stays a plain diffusers UNet, which other software can load; `realcustom/` has the added layers.
    base, added = split_added(model.params["unet"])
    for name, config in model.models.configs.items():
        own = base if name == "unet" else model.params[name]
        write_json(folder / name / "config.json", component_json(name, config))
        write_params(folder / name / weights_name(name), component_layout(name, config), own, dtype)
    if model.models.realcustom:
        write_json(folder / "realcustom" / "config.json", dataclasses.asdict(model.models.realcustom))
        write_params(folder / "realcustom" / weights_name("realcustom"), DIFFUSERS, added, dtype)
    # diffusers would clip z_0 to [-1, 1], which is right for pixels and wrong for latents.
    scheduler = {"_class_name": _SCHEDULER, "clip_sample": False, "set_alpha_to_one": True}
    write_json(
        folder / "scheduler" / "scheduler_config.json", {**dataclasses.asdict(model.schedule), **scheduler}
    )
    write_json(folder / "model_index.json", index_json(model.models))


def _check_no_other_parts(folder: Path, models: Models) -> None:
    """Raise `UserError` if the folder has a part of an earlier model, which loading would add to this one."""
    own = {*models.configs, *TOKENIZERS[: len(models.text_configs)]}
    if models.realcustom:
        own.add("realcustom")
    for name in (*COMPONENTS, *TOKENIZERS):
        if name not in own and (folder / name).exists():
            raise UserError(
                f"the model folder {str(folder)!r} has a {name}/, which this model lacks and loading would "
                "add: use another folder, or remove it"
            )


def component_layout(name: str, config: Any) -> Layout:
    """Layout of a component's folder, as the library that reads it expects it."""
    return DINOV2 if name in IMAGE and not config.pre_norm and config.class_token else DIFFUSERS


def component_json(name: str, config: Any) -> dict[str, Any]:
    """Contents of a component's `config.json` for diffusers or transformers."""
    if name in TEXT:
        return text_to_json(config)
    if name in IMAGE:
        return vision_to_json(config)
    values = dataclasses.asdict(config)
    if name == "unet":
        if values["self_attention"] is True:
            del values["self_attention"]  # diffusers always has it, and has no field for it
        return {**values, "_class_name": "UNet2DConditionModel"}
    levels = len(config.block_out_channels)
    return {
        **values,
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def index_json(models: Models) -> dict[str, Any]:
    """Contents of `model_index.json`: (library, class) of each part."""
    parts: dict[str, Any] = {}
    for name, config in models.configs.items():
        values = component_json(name, config)
        library = "diffusers" if name in ("unet", "vae") else "transformers"
        parts[name] = (library, values.get("_class_name") or values["architectures"][0])
    for name, _ in zip(TOKENIZERS, models.text_configs, strict=False):
        parts[name] = ("transformers", "CLIPTokenizer")
    # diffusers' pipelines list optional parts as (None, None).
    parts |= {"scheduler": ("diffusers", _SCHEDULER), "feature_extractor": (None, None)}
    if len(models.text_configs) > 1:
        # We encode the empty prompt; diffusers' default for SDXL would use zeros.
        return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False, **parts}
    return {"_class_name": "StableDiffusionPipeline", "safety_checker": (None, None), **parts}
