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
from realcustom_jax.encoder_pair import load_pair
from realcustom_jax.errors import UserError
from realcustom_jax.matching import Matcher
from realcustom_jax.models.family import IMAGE, TEXT, Models, unet_shapes
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.models.unet import UNet
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.bases import TOKENIZERS, Base, folder_base
from realcustom_jax.weights.components import (
    LAYOUTS,
    Place,
    check_dtype,
    on_device,
    on_host,
    read_config,
    read_params,
    weights_name,
    write_json,
    write_params,
)
from realcustom_jax.weights.configs import text_to_json, vision_to_json
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.keys import flatten, torch_key, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS, DINOV2, Layout
from realcustom_jax.weights.official import open_added
from realcustom_jax.weights.original import default_tokenizers, is_original, original_base
from realcustom_jax.weights.tensors import Tensors, open_tensors
from realcustom_jax.weights.towers import load_tower, read_tower

TOYBOX = Path(__file__).parent / "toybox" / "model"

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
      matcher: what finds the words of a subject whose words are "auto", or None.
    """

    models: Models
    schedule: ScheduleConfig
    params: Mapping[str, Any]
    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    defaults: SamplingOptions = SamplingOptions()
    matcher: Matcher | None = None

    def replace(self, **changes: Any) -> "Pipeline":
        return dataclasses.replace(self, **changes)

    def with_flash(self) -> "Pipeline":
        """With the flash attention of the devices on which the UNet is, where those have one."""
        return self.replace(
            models=dataclasses.replace(self.models, flash=flash_attention(self.params["unet"]))
        )


# ---------------------------------------------------------------- loading


def load(
    path: str | Path,
    dtype: Any = jnp.float32,
    param_dtype: Any = None,
    sharding: Any = None,
    *,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    matcher: str | Path | None = None,
    tokenizers: Sequence[str | Path] = (),
    revision: str | None = None,
) -> Pipeline:
    """Load a model: every tensor goes from disk straight to its dtype and its devices.

    Args:
      path: a folder in the diffusers layout, with `image_encoder/` and `realcustom/` for subjects; the hub id
        of one; an original one-file checkpoint of SD1.5 or SDXL; or "toybox", the model that ships with the
        package.
      dtype: of computation.
      param_dtype: of the parameters; default float32.
      sharding: where parameters go: a `jax.sharding.Sharding` for all, a function of a parameter's path
        ("unet/conv_in/kernel") and shape that gives one, or None for the default device.
      realcustom: what RealCustom adds, instead of the folder's own: a `realcustom/` folder, or a checkpoint
        file such as the published RealCustom++ one, laid over any base of the same shape.
      image_encoders: image towers instead of the folder's own, one or two folders or hub ids, of transformers
        or timm. All run at the image size of the first.
      matcher: a whole CLIP model, a folder or hub id of transformers, that finds the words of subjects whose
        words are "auto". Default the model's own encoders, where they are a pair.
      tokenizers: of a one-file checkpoint, which has none: a folder or hub id for each text encoder. Default
        those of SD1.5 and SDXL on the hub.
      revision: of a hub repository at `path`.

    Raises:
      UserError: when a part is missing or does not fit; weights are compared key by key.
    """
    parts = find_parts(path, realcustom, image_encoders, tokenizers, revision)
    pipe = load_parts(parts, on_device(param_dtype or jnp.float32, sharding), dtype).with_flash()
    return pipe if matcher is None else pipe.replace(matcher=load_pair(matcher))


def load_on_host(
    path: str | Path,
    dtype: Any = jnp.float32,
    *,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    tokenizers: Sequence[str | Path] = (),
) -> Pipeline:
    """As `load`, but with numpy float32 parameters: training places them itself, straight into shards."""
    parts = find_parts(path, realcustom, image_encoders, tokenizers)
    return load_parts(parts, on_host(jnp.float32), dtype)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where a model's parts are.

    Attributes:
      base: the text-to-image model.
      towers: folders of none, one or two image towers.
      realcustom: folder or file of what RealCustom adds, or None.
    """

    base: Base
    towers: tuple[Path, ...]
    realcustom: Path | None


def find_parts(
    path: str | Path,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    tokenizers: Sequence[str | Path] = (),
    revision: str | None = None,
) -> Parts:
    """The parts of a model, their configs read; see `load`.

    Raises:
      UserError: for a path that is not there, a config that is missing or none of ours, or more image towers
        than two.
    """
    if len(image_encoders) > len(IMAGE):
        raise UserError(f"there can be {len(IMAGE)} image encoders, not {len(image_encoders)}")
    towers = tuple(find_folder(one) for one in image_encoders)
    added = None if realcustom is None else Path(realcustom)
    folder = TOYBOX if str(path) == "toybox" else find_folder(path, COMPONENTS, revision)
    if folder.is_file():
        return Parts(_one_file(folder, tokenizers), towers, added)
    if tokenizers:
        raise UserError(f"{str(folder)!r} has its own tokenizers; others go only with a one-file checkpoint")
    optional = {
        name for name in (*IMAGE, TEXT[1], TOKENIZERS[1], "realcustom") if not (folder / name).is_dir()
    }
    names = [name for name in (*COMPONENTS, *TOKENIZERS, "scheduler") if name not in optional]
    found = {name: folder / name for name in names}
    own = tuple(found[name] for name in IMAGE if name in found)
    return Parts(folder_base(found), towers or own, added or found.get("realcustom"))


def _one_file(path: Path, tokenizers: Sequence[str | Path]) -> Base:
    tensors = open_tensors(path)
    if not is_original(tensors):
        raise UserError(
            f"{str(path)!r} is neither a model folder nor an original checkpoint of SD1.5 or SDXL"
        )
    names = tokenizers or default_tokenizers(tensors)
    return original_base(tensors, [find_folder(name, ()) for name in names])


def load_parts(parts: Parts, place: Place, dtype: Any = jnp.float32) -> Pipeline:
    """As `load`, with parameters put where `place` says; paths begin with their component."""
    models, added_tensors = _read_models(parts, dtype)
    # All before the first weights are read: tracing finds mistakes in the configs.
    shapes = {name: models.component_shapes(name) for name in models.configs if name not in IMAGE}
    base, added = split_added(shapes["unet"])
    folders = dict(zip(IMAGE, parts.towers, strict=False))
    params = {}
    for name, config in models.configs.items():
        placed = functools.partial(_place_in, place, name)
        if name in IMAGE:
            _, params[name] = load_tower(folders[name], placed, config.image_size)
        else:
            params[name] = parts.base.load(name, base if name == "unet" else shapes[name], placed)
    if added_tensors:
        placed = functools.partial(_place_in, place, "unet")
        extra = read_params(added_tensors, LAYOUTS["realcustom"], added, placed)
        params["unet"] = join_added(params["unet"], extra)
    tokenizers = tuple(map(load_tokenizer, parts.base.tokenizers, parts.base.padding))
    return Pipeline(models, parts.base.schedule, params, tokenizers, _load_defaults(parts, models))


def _place_in(place: Place, component: str, path: str, value: Any) -> Any:
    return place(f"{component}/{path}", value)


def read_models(path: str | Path, dtype: Any = jnp.float32) -> Models:
    """The shapes of all components of a model folder.

    Raises:
      UserError: when a config is missing, is none of ours, or contradicts another.
    """
    return _read_models(find_parts(path), dtype)[0]


def _read_models(parts: Parts, dtype: Any) -> tuple[Models, Tensors | None]:
    towers = [dataclasses.replace(read_tower(folder), position_prefix=True) for folder in parts.towers]
    # RealCustom++ runs DINOv2, which was trained at 518 pixels, at SigLIP's 384.
    towers = [dataclasses.replace(tower, image_size=towers[0].image_size) for tower in towers]
    base, added, tensors = parts.base, None, None
    if parts.realcustom:
        added, tensors = open_added(
            parts.realcustom, lambda: map(torch_key, flatten(unet_shapes(UNet(base.unet), 1, 0, 0)))
        )
    return Models(base.unet, base.vae, base.texts, tuple(towers), added, dtype), tensors


def base_defaults(models: Models) -> SamplingOptions:
    """SDXL's sampling options for a UNet of its kind, else SD1.5's."""
    return SDXL if models.unet_config.addition_embed_type == "text_time" else SamplingOptions()


def _load_defaults(parts: Parts, models: Models) -> SamplingOptions:
    """The base's defaults, changed by `realcustom/sampling.json` where there is one."""
    path = parts.realcustom and parts.realcustom / "sampling.json"
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
