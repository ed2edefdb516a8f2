"""A model folder in memory: modules, parameters, tokenizers and noise schedule; loading and saving it."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from realcustom_jax.data.tokenize import load_tokenizer
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.errors import UserError
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.models.family import IMAGE, TEXT, Models
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import (
    LAYOUTS,
    Place,
    check_dtype,
    find_weights,
    on_device,
    on_host,
    read_config,
    read_params,
    weights_name,
    write_json,
    write_params,
)
from realcustom_jax.weights.configs import (
    read_schedule,
    read_text,
    read_unet,
    read_vae,
    text_to_json,
    vision_to_json,
)
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS, DINOV2, Layout
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import load_tower, read_tower

TOYBOX = Path(__file__).parent / "toybox" / "model"

TOKENIZERS = ("tokenizer", "tokenizer_2")
COMPONENTS = ("unet", "vae", *TEXT, *IMAGE, "realcustom")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Everything that sampling and training need of a model.

    Attributes:
      models: modules and their shapes, static.
      schedule: the noise schedule, static.
      params: {component: `params` tree}; see `Models`.
      tokenizers: one for each text encoder.
      defaults: of the sampling options.
    """

    models: Models
    schedule: ScheduleConfig
    params: Mapping[str, Any]
    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    defaults: SamplingOptions = SamplingOptions()

    def replace(self, **changes: Any) -> "Pipeline":
        return dataclasses.replace(self, **changes)


# ---------------------------------------------------------------- loading


def load(
    path: str | Path,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    sharding: Any = None,
    revision: str | None = None,
) -> Pipeline:
    """Load a model: every tensor goes from disk straight to its dtype and its devices.

    Args:
      path: a folder in the diffusers layout, with `image_encoder/` and `realcustom/` for subjects (`python -m
        realcustom_jax.convert` puts them together); the hub id of one; or "toybox", the model that ships with
        the package.
      dtype: of computation.
      param_dtype: of the parameters; default float32.
      sharding: where parameters go: a `jax.sharding.Sharding` for all, a function of a parameter's path
        ("unet/conv_in/kernel") and shape that gives one, or None for the default device.
      revision: of a hub repository.

    Raises:
      UserError: when a part is missing or does not fit; weights are compared key by key.
    """
    return load_with(path, on_device(param_dtype or jnp.float32, sharding), dtype, revision)


def load_on_host(path: str | Path, dtype: Any = jnp.float32, param_dtype: Any = jnp.float32) -> Pipeline:
    """As `load`, but with numpy parameters: training places them itself, straight into shards."""
    return load_with(path, on_host(param_dtype), dtype)


def load_with(
    path: str | Path, place: Place, dtype: Any = jnp.float32, revision: str | None = None
) -> Pipeline:
    """As `load`, with parameters put where `place` says; paths begin with their component."""
    folder = TOYBOX if str(path) == "toybox" else find_folder(path, COMPONENTS, revision)
    if not folder.is_dir():
        raise UserError(
            f"{str(folder)!r} is a file, not a model folder; see python -m realcustom_jax.convert"
        )
    models = read_models(folder, dtype)
    shapes = models.param_shapes()
    base, added = split_added(shapes["unet"])
    params = {}
    for name in models.configs:
        placed = functools.partial(_place_in, place, name)
        if name in IMAGE:
            config = models.configs[name]
            _, params[name] = load_tower(folder / name, placed, config.image_size)
        else:
            params[name] = _read_component(folder / name, base if name == "unet" else shapes[name], placed)
    if models.realcustom:
        placed = functools.partial(_place_in, place, "unet")
        params["unet"] = join_added(params["unet"], _read_component(folder / "realcustom", added, placed))
    tokenizers = tuple(
        load_tokenizer(folder / name) for name, _ in zip(TOKENIZERS, models.text_configs, strict=False)
    )
    schedule = read_schedule(
        read_config(folder / "scheduler", "scheduler_config.json"), f"{folder}/scheduler"
    )
    return Pipeline(models, schedule, params, tokenizers, load_defaults(folder, models))


def _place_in(place: Place, component: str, path: str, value: Any) -> Any:
    return place(f"{component}/{path}", value)


def _read_component(folder: Path, shapes: Any, place: Place) -> Any:
    kind = re.sub(r"_2$", "", folder.name)
    return read_params(open_tensors(find_weights(folder)), LAYOUTS[kind], shapes, place)


def read_models(folder: Path, dtype: Any = jnp.float32) -> Models:
    """The shapes of all components of a model folder.

    Raises:
      UserError: when a config is missing, is none of ours, or contradicts another.
    """
    towers = [folder / name for name in IMAGE if (folder / name).is_dir()]
    encoders = [folder / name for name in TEXT if name == TEXT[0] or (folder / name).is_dir()]
    added = folder / "realcustom"
    return Models(
        read_unet(read_config(folder / "unet"), f"{folder / 'unet'}"),
        read_vae(read_config(folder / "vae"), f"{folder / 'vae'}"),
        tuple(read_text(read_config(path), str(path)) for path in encoders),
        tuple(dataclasses.replace(read_tower(path), position_prefix=True) for path in towers),
        from_mapping(RealCustomConfig, read_config(added)) if added.is_dir() else None,
        dtype,
    )


def load_schedule(folder: Path) -> ScheduleConfig:
    part = folder / "scheduler"
    return read_schedule(read_config(part, "scheduler_config.json"), str(part))


def base_defaults(models: Models) -> SamplingOptions:
    """SDXL's sampling options for a UNet of its kind, else SD1.5's."""
    return SDXL if models.unet_config.addition_embed_type == "text_time" else SamplingOptions()


def load_defaults(folder: Path, models: Models) -> SamplingOptions:
    """The base's defaults, changed by `realcustom/sampling.json` where there is one."""
    path = folder / "realcustom" / "sampling.json"
    if not path.is_file():
        return base_defaults(models)
    try:
        return base_defaults(models).changed(read_config(path.parent, path.name))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def split_added(unet: Any) -> tuple[Any, Any]:
    """A UNet's parameters (or shapes) as those of the base model and those that RealCustom adds."""
    flat = flatten(unet)
    added = {path: value for path, value in flat.items() if re.search(ADDED, path)}
    return unflatten({path: value for path, value in flat.items() if path not in added}), unflatten(added)


def join_added(base: Any, added: Any) -> Any:
    """The inverse of `split_added`."""
    return unflatten({**flatten(base), **flatten(added)})


# ---------------------------------------------------------------- saving


def save(pipe: Pipeline, path: str | Path, weights_dtype: str = "float32") -> None:
    """Write a model folder that `load` reads, and of which diffusers and transformers read their parts.

    Raises:
      UserError: for a `weights_dtype` that is not one of `WEIGHT_DTYPES`.
    """
    check_dtype(weights_dtype)
    folder = Path(path)
    models = pipe.models
    base, added = split_added(pipe.params["unet"])
    for name, config in models.configs.items():
        params = base if name == "unet" else pipe.params[name]
        write_json(folder / name / "config.json", component_json(name, config))
        write_params(
            folder / name / weights_name(name), component_layout(name, config), params, weights_dtype
        )
    if models.realcustom:
        _save_realcustom(folder / "realcustom", pipe, added, weights_dtype)
    write_json(
        folder / "scheduler" / "scheduler_config.json",
        {**dataclasses.asdict(pipe.schedule), "_class_name": _SCHEDULER, "clip_sample": False},
    )
    write_json(folder / "model_index.json", _index(models))
    for name, tokenizer in zip(TOKENIZERS, pipe.tokenizers, strict=False):
        tokenizer.save_pretrained(folder / name)


_SCHEDULER = "DDIMScheduler"


def component_layout(name: str, config: Any) -> Layout:
    """How the folder of a component names its tensors: as the library that reads it does."""
    return DINOV2 if name in IMAGE and not config.pre_norm and config.class_token else DIFFUSERS


def component_json(name: str, config: Any) -> dict[str, Any]:
    """`config.json` of a component, as diffusers or transformers reads it."""
    if name in TEXT:
        return text_to_json(config)
    if name in IMAGE:
        return vision_to_json(config)
    values = dataclasses.asdict(config)
    if name == "unet":
        return {**values, "_class_name": "UNet2DConditionModel"}
    levels = len(config.block_out_channels)
    return {
        **values,
        "_class_name": "AutoencoderKL",
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def _save_realcustom(folder: Path, pipe: Pipeline, added: Any, dtype: str) -> None:
    write_json(folder / "config.json", dataclasses.asdict(pipe.models.realcustom))
    write_params(folder / weights_name("realcustom"), DIFFUSERS, added, dtype)
    base = dataclasses.asdict(base_defaults(pipe.models))
    changes = {k: v for k, v in dataclasses.asdict(pipe.defaults).items() if v != base[k]}
    write_json(folder / "sampling.json", changes)


def _index(models: Models) -> dict[str, Any]:
    """`model_index.json`: (library, class) of each part."""
    parts: dict[str, Any] = {}
    for name, config in models.configs.items():
        values = component_json(name, config)
        library = "diffusers" if name in ("unet", "vae") else "transformers"
        parts[name] = (library, values.get("_class_name") or values["architectures"][0])
    for name, _ in zip(TOKENIZERS, models.text_configs, strict=False):
        parts[name] = ("transformers", "CLIPTokenizer")
    parts |= {"scheduler": ("diffusers", _SCHEDULER), "feature_extractor": (None, None)}
    if len(models.text_configs) > 1:
        return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False, **parts}
    return {"_class_name": "StableDiffusionPipeline", "safety_checker": (None, None), **parts}
