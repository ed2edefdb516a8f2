"""A model folder in memory: modules, parameters, tokenizers and noise schedule; loading and saving it."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from transformers import PreTrainedTokenizerBase

from realcustom_jax.data.tokenize import load_tokenizer, save_tokenizer
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.errors import UserError
from realcustom_jax.models.family import IMAGE, TEXT, Models, unet_shapes
from realcustom_jax.models.unet import UNet
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import (
    LAYOUTS,
    Place,
    check_dtype,
    load_params,
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
from realcustom_jax.weights.keys import flatten, torch_key, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS, DINOV2, Layout
from realcustom_jax.weights.official import open_added
from realcustom_jax.weights.tensors import Tensors
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
    *,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    revision: str | None = None,
) -> Pipeline:
    """Load a model: every tensor goes from disk straight to its dtype and its devices.

    Args:
      path: a folder in the diffusers layout, with `image_encoder/` and `realcustom/` for subjects; the hub id
        of one; or "toybox", the model that ships with the package.
      dtype: of computation.
      param_dtype: of the parameters; default float32.
      sharding: where parameters go: a `jax.sharding.Sharding` for all, a function of a parameter's path
        ("unet/conv_in/kernel") and shape that gives one, or None for the default device.
      realcustom: what RealCustom adds, instead of the folder's own: a `realcustom/` folder, or a checkpoint
        file such as the published RealCustom++ one, laid over any base of the same shape.
      image_encoders: image towers instead of the folder's own, one or two folders or hub ids, of transformers
        or timm. All run at the image size of the first.
      revision: of a hub repository at `path`.

    Raises:
      UserError: when a part is missing or does not fit; weights are compared key by key.
    """
    parts = find_parts(path, realcustom, image_encoders, revision)
    return load_parts(parts, on_device(param_dtype or jnp.float32, sharding), dtype)


def load_on_host(
    path: str | Path,
    dtype: Any = jnp.float32,
    *,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
) -> Pipeline:
    """As `load`, but with numpy float32 parameters: training places them itself, straight into shards."""
    return load_parts(find_parts(path, realcustom, image_encoders), on_host(jnp.float32), dtype)


def find_parts(
    path: str | Path,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    revision: str | None = None,
) -> dict[str, Path]:
    """{component: where it is}, with tokenizers and scheduler; see `load`.

    Raises:
      UserError: for a path that is not there, or more image towers than two.
    """
    folder = TOYBOX if str(path) == "toybox" else find_folder(path, COMPONENTS, revision)
    if not folder.is_dir():
        raise UserError(f"{str(folder)!r} is a file, not a model folder")
    if len(image_encoders) > len(IMAGE):
        raise UserError(f"there can be {len(IMAGE)} image encoders, not {len(image_encoders)}")
    optional = {
        name for name in (*IMAGE, TEXT[1], TOKENIZERS[1], "realcustom") if not (folder / name).is_dir()
    }
    names = [name for name in (*COMPONENTS, *TOKENIZERS, "scheduler") if name not in optional]
    parts = {name: folder / name for name in names}
    if image_encoders:
        parts = {name: part for name, part in parts.items() if name not in IMAGE}
        parts |= {name: find_folder(one) for name, one in zip(IMAGE, image_encoders, strict=False)}
    if realcustom is not None:
        parts["realcustom"] = Path(realcustom)
    return parts


def load_parts(parts: Mapping[str, Path], place: Place, dtype: Any = jnp.float32) -> Pipeline:
    """As `load`, with parameters put where `place` says; paths begin with their component."""
    models, added_tensors = _read_models(parts, dtype)
    shapes = models.param_shapes()
    base, added = split_added(shapes["unet"])
    params = {}
    for name, config in models.configs.items():
        placed = functools.partial(_place_in, place, name)
        if name in IMAGE:
            _, params[name] = load_tower(parts[name], placed, config.image_size)
        else:
            wanted = base if name == "unet" else shapes[name]
            kind = re.sub(r"_2$", "", name)
            params[name] = load_params(parts[name], kind, wanted, placed)
    if added_tensors:
        placed = functools.partial(_place_in, place, "unet")
        extra = read_params(added_tensors, LAYOUTS["realcustom"], added, placed)
        params["unet"] = join_added(params["unet"], extra)
    tokenizers = tuple(load_tokenizer(parts[name]) for name in TOKENIZERS[: len(models.text_configs)])
    return Pipeline(
        models, load_schedule(parts["scheduler"]), params, tokenizers, load_defaults(parts, models)
    )


def _place_in(place: Place, component: str, path: str, value: Any) -> Any:
    return place(f"{component}/{path}", value)


def read_models(path: str | Path, dtype: Any = jnp.float32) -> Models:
    """The shapes of all components of a model folder.

    Raises:
      UserError: when a config is missing, is none of ours, or contradicts another.
    """
    return _read_models(find_parts(path), dtype)[0]


def _read_models(parts: Mapping[str, Path], dtype: Any) -> tuple[Models, Tensors | None]:
    unet = read_unet(read_config(parts["unet"]), str(parts["unet"]))
    towers = [
        dataclasses.replace(read_tower(parts[name]), position_prefix=True) for name in IMAGE if name in parts
    ]
    # RealCustom++ runs DINOv2, which was trained at 518 pixels, at SigLIP's 384.
    towers = [dataclasses.replace(tower, image_size=towers[0].image_size) for tower in towers]
    added, tensors = None, None
    if "realcustom" in parts:
        base_keys = map(torch_key, flatten(unet_shapes(UNet(unet), 1, 0, 0)))
        added, tensors = open_added(parts["realcustom"], base_keys)
    texts = tuple(read_text(read_config(parts[name]), str(parts[name])) for name in TEXT if name in parts)
    vae = read_vae(read_config(parts["vae"]), str(parts["vae"]))
    return Models(unet, vae, texts, tuple(towers), added, dtype), tensors


def load_schedule(folder: Path) -> ScheduleConfig:
    return read_schedule(read_config(folder, "scheduler_config.json"), str(folder))


def base_defaults(models: Models) -> SamplingOptions:
    """SDXL's sampling options for a UNet of its kind, else SD1.5's."""
    return SDXL if models.unet_config.addition_embed_type == "text_time" else SamplingOptions()


def load_defaults(parts: Mapping[str, Path], models: Models) -> SamplingOptions:
    """The base's defaults, changed by `realcustom/sampling.json` where there is one."""
    path = parts["realcustom"] / "sampling.json" if "realcustom" in parts else None
    if path is None or not path.is_file():
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
    # diffusers would clip z_0 to [-1, 1], which is right for pixels and wrong for latents.
    scheduler = {"_class_name": _SCHEDULER, "clip_sample": False, "set_alpha_to_one": True}
    write_json(
        folder / "scheduler" / "scheduler_config.json", {**dataclasses.asdict(pipe.schedule), **scheduler}
    )
    write_json(folder / "model_index.json", _index(models))
    for name, tokenizer in zip(TOKENIZERS, pipe.tokenizers, strict=False):
        save_tokenizer(tokenizer, folder / name)


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
        if values["self_attention"] is True:
            del values["self_attention"]  # diffusers' only form, for which it has no field
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
