"""A model folder in memory: modules, parameters, tokenizer and noise schedule; loading and saving it."""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from realcustom_jax.data.tokenize import load_tokenizer, save_tokenizer
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.errors import UserError
from realcustom_jax.models.config import from_mapping
from realcustom_jax.models.family import Models
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.diffusers import WEIGHT_DTYPES, load_params, read_config, save_params
from realcustom_jax.weights.keys import flatten, unflatten

TOYBOX = Path(__file__).parent / "toybox" / "model"

COMPONENTS = ("unet", "vae", "text_encoder", "image_encoder")

_MODEL_TYPES = {"text_encoder": "clip_text_model", "image_encoder": "clip_vision_model"}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Everything that sampling and training need of a model.

    Attributes:
      models: modules and their shapes, static.
      schedule: the noise schedule, static.
      params: {"unet", "vae", "text_encoder", "image_encoder"} → `params` trees.
      tokenizer: of the text encoder.
      defaults: of the sampling options.
    """

    models: Models
    schedule: ScheduleConfig
    params: Mapping[str, Any]
    tokenizer: PreTrainedTokenizerBase
    defaults: SamplingOptions = SamplingOptions()

    def replace(self, **changes: Any) -> "Pipeline":
        return dataclasses.replace(self, **changes)


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The components' configs in a model folder, ready for `Models.from_configs`."""
    configs = {name: read_config(folder / name) for name in COMPONENTS}
    if (folder / "realcustom").is_dir():
        configs["realcustom"] = read_config(folder / "realcustom")
    return configs


def load(path: str | Path, dtype: Any = jnp.float32) -> Pipeline:
    """Load a model folder, its parameters onto the default device.

    Args:
      path: a folder in the diffusers layout with `image_encoder/` and, for subjects, `realcustom/`; or
        "toybox", the model that ships with the package.
      dtype: of computation. Parameters are float32.

    Raises:
      UserError: when a part is missing or does not fit; weights are compared key by key.
    """
    pipe = load_on_host(path, dtype)
    return pipe.replace(params=jax.device_put(pipe.params))


def load_on_host(path: str | Path, dtype: Any = jnp.float32) -> Pipeline:
    """As `load`, but with numpy parameters: training places them itself, straight into shards."""
    folder = TOYBOX if str(path) == "toybox" else Path(path)
    if not folder.is_dir():
        raise UserError(f"there is no model folder {str(path)!r}; the shipped model is called 'toybox'")
    models = Models.from_configs(read_configs(folder), dtype)
    shapes = models.param_shapes()
    params = {name: load_params(folder / name, shapes[name]) for name in COMPONENTS if name != "unet"}
    base, added = split_added(shapes["unet"])
    params["unet"] = load_params(folder / "unet", base)
    if added:
        added = load_params(folder / "realcustom", added)
        params["unet"] = unflatten({**flatten(params["unet"]), **flatten(added)})
    tokenizer = load_tokenizer(folder / "tokenizer")
    return Pipeline(models, load_schedule(folder), params, tokenizer, load_defaults(folder, models))


def load_schedule(folder: Path) -> ScheduleConfig:
    return from_mapping(ScheduleConfig, read_config(folder / "scheduler", "scheduler_config.json"))


def base_defaults(models: Models) -> SamplingOptions:
    """SDXL's sampling options for a UNet of its kind, else SD1.5's."""
    return SDXL if models.unet_config.addition_embed_type == "text_time" else SamplingOptions()


def load_defaults(folder: Path, models: Models) -> SamplingOptions:
    """The base's defaults, changed by `realcustom/sampling.json` where there is one."""
    path = folder / "realcustom" / "sampling.json"
    return base_defaults(models).changed(json.loads(path.read_text()) if path.is_file() else {})


def split_added(unet: Any) -> tuple[Any, Any]:
    """A UNet's parameters (or shapes) as those of the base model and those that RealCustom adds."""
    flat = flatten(unet)
    added = {path: value for path, value in flat.items() if re.search(ADDED, path)}
    return unflatten({path: value for path, value in flat.items() if path not in added}), unflatten(added)


def save(pipe: Pipeline, path: str | Path, weights_dtype: str = "float32") -> None:
    """Write a model folder that `load` reads, and of which diffusers and transformers read their parts.

    Raises:
      UserError: for a `weights_dtype` that is not one of `WEIGHT_DTYPES`.
    """
    if weights_dtype not in WEIGHT_DTYPES:
        known = ", ".join(WEIGHT_DTYPES)
        raise UserError(f"weights cannot be written as {weights_dtype!r}; known: {known}")
    folder = Path(path)
    models = pipe.models
    classes = _classes(models)
    base, added = split_added(pipe.params["unet"])
    configs = {
        "unet": models.unet_config,
        "vae": models.vae_config,
        "text_encoder": models.text_config,
        "image_encoder": models.image_config,
    }
    for name, config in configs.items():
        params = base if name == "unet" else pipe.params[name]
        save_params(folder / name, name, _to_json(name, config, classes), params, weights_dtype)
    if models.realcustom:
        save_params(
            folder / "realcustom", "realcustom", dataclasses.asdict(models.realcustom), added, weights_dtype
        )
        base = dataclasses.asdict(base_defaults(models))
        changes = {k: v for k, v in dataclasses.asdict(pipe.defaults).items() if v != base[k]}
        _write_json(folder / "realcustom" / "sampling.json", changes)
    _write_json(folder / "scheduler" / "scheduler_config.json", _to_json("scheduler", pipe.schedule, classes))
    index = {**classes, "safety_checker": (None, None), "feature_extractor": (None, None)}
    _write_json(folder / "model_index.json", {"_class_name": "StableDiffusionPipeline", **index})
    save_tokenizer(pipe.tokenizer, folder / "tokenizer")


def _classes(models: Models) -> dict[str, tuple[str, str]]:
    """What the folder says of itself, so that diffusers and transformers read each part: (library, class)."""
    projection = "WithProjection" if models.text_config.with_projection else ""
    return {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", f"CLIPTextModel{projection}"),
        "image_encoder": ("transformers", "CLIPVisionModelWithProjection"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "scheduler": ("diffusers", "DDIMScheduler"),
    }


def _to_json(name: str, config: Any, classes: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    library, cls = classes[name]
    if library == "diffusers":
        values["_class_name"] = cls
    else:
        values |= {"architectures": [cls], "model_type": _MODEL_TYPES[name]}
    if name == "vae":
        levels = len(config.block_out_channels)
        values["down_block_types"] = ["DownEncoderBlock2D"] * levels
        values["up_block_types"] = ["UpDecoderBlock2D"] * levels
    if name == "unet" and values["self_attention"] is True:
        del values["self_attention"]  # diffusers' only form, for which it has no field
    if name == "scheduler":
        # diffusers would clip z_0 to [-1, 1], which is right for pixels and wrong for latents.
        values |= {"clip_sample": False, "set_alpha_to_one": True}
    return values


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
