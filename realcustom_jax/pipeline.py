"""A model folder in memory: modules, parameters, tokenizers and noise schedule; loading and saving it."""

import dataclasses
import functools
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from transformers import PreTrainedTokenizerBase

from realcustom_jax.data.tokenize import load_tokenizer, save_tokenizer
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.encoder_pair import load_pair
from realcustom_jax.errors import UserError, shown
from realcustom_jax.files import make_folder, reading
from realcustom_jax.matching import Matcher
from realcustom_jax.memory import return_freed_memory
from realcustom_jax.models.family import IMAGE, TEXT, Models, unet_shapes
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.models.unet import UNet
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.precision import resolve_dtype, vae_compute_dtype
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.bases import TOKENIZERS, Base, folder_base, with_tensors, with_unet
from realcustom_jax.weights.components import (
    LAYOUTS,
    check_dtype,
    misfits,
    on_device,
    on_host,
    open_params,
    read_config,
    weights_name,
    write_json,
    write_params,
)
from realcustom_jax.weights.configs import text_to_json, vision_to_json
from realcustom_jax.weights.hub import check_path, find_folder
from realcustom_jax.weights.keys import flatten, torch_key, unflatten
from realcustom_jax.weights.layouts import DIFFUSERS, DINOV2, Layout
from realcustom_jax.weights.lazy import Place, place_params
from realcustom_jax.weights.official import Added, open_added
from realcustom_jax.weights.original import default_tokenizers, is_original, original_base
from realcustom_jax.weights.tensors import open_tensors
from realcustom_jax.weights.towers import open_tower, read_tower

_LOG = logging.getLogger(__name__)

TOYBOX = Path(__file__).parent / "toybox" / "model"

COMPONENTS = ("unet", "vae", *TEXT, *IMAGE, "realcustom")


@dataclasses.dataclass(frozen=True, repr=False)
class Pipeline:
    """Everything that sampling and training need of a model.

    Attributes:
      models: modules and their shapes, static.
      schedule: the noise schedule, static.
      params: {component: `params` tree}; see `Models`.
      tokenizers: one for each text encoder.
      defaults: of the sampling options.
      matcher: what finds the words of a subject whose words are "auto", or None.
      mesh: the devices among which `sample` divides a batch, along the first axis; None for the default
        device.
      source: what `load` was given: {"model": path, "dtype": name, …}, of the parts those that were given;
        empty where it was not loaded.
    """

    models: Models
    schedule: ScheduleConfig
    params: Mapping[str, Any]
    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    defaults: SamplingOptions = SamplingOptions()
    matcher: Matcher | None = None
    mesh: Mesh | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # What depends on the parameters alone and is computed once: of this object only, `replace` begins anew.
    cache: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """What it is, in a few lines."""
        models = self.models
        side = models.unet_config.sample_size * models.vae_config.downscale
        base = "SDXL" if len(models.text_configs) > 1 else "SD"
        added = models.realcustom.projector if models.realcustom else "none"
        count = 1 if self.mesh is None else self.mesh.size
        devices = f"{count} device{'' if count == 1 else 's'}{', offloaded' if self.offloaded else ''}"
        lines = [
            f"Pipeline({self.source.get('model', '')!r}, {base} of {side}x{side} pixels, "
            f"{jnp.dtype(models.dtype).name}, {devices})",
            f"  parts: {', '.join(models.configs)}; realcustom: {added}",
        ]
        changed = {
            field.name: getattr(self.defaults, field.name)
            for field in dataclasses.fields(self.defaults)
            if getattr(self.defaults, field.name) != field.default
        }
        defaults = ", ".join(f"{name}={value!r}" for name, value in changed.items())
        lines.append(f"  defaults: {defaults or 'those of SamplingOptions()'}")
        return "\n".join(lines)

    def on_mesh(self, mesh: Mesh) -> "Pipeline":
        """With the parameters copied to every device of a mesh, among which `sample` divides a batch."""
        params = jax.device_put(dict(self.params), NamedSharding(mesh, PartitionSpec()))
        models = dataclasses.replace(self.models, flash=flash_attention(mesh, bind=False))
        return self.replace(params=params, models=models, mesh=mesh)

    @property
    def offloaded(self) -> bool:
        """Whether parameters come to their devices each time they are asked for."""
        return isinstance(self.params, Offloaded)

    def replace(self, **changes: Any) -> "Pipeline":
        return dataclasses.replace(self, **changes)


class Offloaded(Mapping[str, Any]):
    """{component: its parameters}, put on their devices each time they are asked for.

    Whoever asks lets go of them when they have done their work. They are read from their files again, which
    the operating system keeps in memory where there is room.
    """

    def __init__(self, params: Mapping[str, Any], place: Place):
        """`params` are lazy; `place` takes paths of the whole model."""
        self._params = params
        self._place = place

    def __getitem__(self, name: str) -> Any:
        return_freed_memory()  # of the component before this one
        return place_params({name: self._params[name]}, self._place)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)


# ---------------------------------------------------------------- loading


def load(
    path: str | Path,
    dtype: Any = "auto",
    param_dtype: Any = None,
    sharding: Any = None,
    *,
    vae_dtype: Any = "auto",
    mesh: Mesh | None = None,
    offload: bool = False,
    unet: str | Path | None = None,
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
      dtype: of computation: "auto" (bfloat16 on TPUs and GPUs, float32 on CPUs), "float32", "bfloat16", or
        one of numpy's or JAX's.
      param_dtype: of the parameters; default `dtype`. Those of the scoring stay float32.
      sharding: where parameters go: a `jax.sharding.Sharding` for all, or a function of a parameter's path
        ("unet/conv_in/kernel") and shape that gives one. Default: whole on every device of the mesh.
      vae_dtype: of the VAE and its parameters: "auto" is float32, or `dtype` where the VAE's config says
        `"force_upcast": false`.
      mesh: the devices among which `sample` divides a batch, along the mesh's first axis. Default all
        devices of this process.
      offload: keep on the devices only the part that works: text encoders, image towers, UNet and VAE come
        and go. For devices, or machines without one, whose memory is smaller than the model.
      unet: another base UNet of the same shape, instead of the model's own: a folder, a hub id, or a file in
        diffusers', Flax' or the original layout.
      realcustom: what RealCustom adds, instead of the folder's own: a `realcustom/` folder, or a checkpoint
        file such as the published RealCustom++ one, laid over any base of the same shape. Where the file
        also holds the base UNet, that is used, unless `unet` is given.
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
    if not isinstance(path, (str, Path)):
        raise UserError(f"a model is loaded from a folder, a file or a hub id, not from {shown(path)}")
    if not (sharding is None or callable(sharding) or isinstance(sharding, Sharding)):
        raise UserError(f"sharding must be a jax.sharding.Sharding or a function, not {shown(sharding)}")
    if not (mesh is None or isinstance(mesh, Mesh)):
        raise UserError(f"mesh must be a jax.sharding.Mesh, not {shown(mesh)}")
    if mesh is None:
        mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    compute = resolve_dtype(dtype, mesh)
    parts = find_parts(path, realcustom, image_encoders, tokenizers, revision, unet)
    models = _read_models(parts, compute)
    vae = vae_compute_dtype(vae_dtype, compute, models.vae_config, mesh)
    models = dataclasses.replace(models, vae_dtype=vae, flash=flash_attention(mesh, bind=False))
    common = compute if param_dtype is None else resolve_dtype(param_dtype, mesh, "param_dtype")
    dtypes = functools.partial(dtype_of_param, common, vae or common)
    place = on_device(dtypes, NamedSharding(mesh, PartitionSpec()) if sharding is None else sharding)
    names = {"dtype": jnp.dtype(compute).name, "vae_dtype": jnp.dtype(vae or compute).name}
    given = {
        "unet": unet and str(unet),
        "realcustom": realcustom and str(realcustom),
        "image_encoders": list(map(str, image_encoders)),
        "tokenizers": list(map(str, tokenizers)),
    }
    source = {"model": str(path), **names, **{name: value for name, value in given.items() if value}}
    pipe = dataclasses.replace(open_pipeline(parts, models), mesh=mesh, source=source)
    # Before the model's parameters, which take minutes: a wrong path is told at once.
    pair = None if matcher is None else load_pair(matcher)
    params = Offloaded(pipe.params, place) if offload else place_params(pipe.params, place)
    return pipe.replace(params=params, matcher=pair)


def dtype_of_param(common: Any, vae: Any, path: str) -> Any:
    """Of a parameter, by its path in the whole model: `vae` for the VAE's, `common` for most others."""
    if re.search(r"(^|/)scoring/", path):  # scores are float32, and these are few
        return jnp.float32
    return vae if path.startswith("vae/") else common


def open_model(
    path: str | Path,
    *,
    unet: str | Path | None = None,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    tokenizers: Sequence[str | Path] = (),
    dtype: Any = jnp.float32,
) -> Pipeline:
    """As `load`, but the parameters are `LazyArray`s: each is read from its file when it is used."""
    parts = find_parts(path, realcustom, image_encoders, tokenizers, unet=unet)
    return open_pipeline(parts, _read_models(parts, dtype))


def load_on_host(path: str | Path, dtype: Any = jnp.float32, **parts: Any) -> Pipeline:
    """As `open_model`, with numpy float32 parameters."""
    pipe = open_model(path, dtype=dtype, **parts)
    return pipe.replace(params=place_params(pipe.params, on_host(jnp.float32)))


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where a model's parts are.

    Attributes:
      base: the text-to-image model.
      towers: folders of none, one or two image towers.
      added: what RealCustom adds, or None.
      defaults: the folder of `sampling.json`, or None.
    """

    base: Base
    towers: tuple[Path, ...]
    added: Added | None
    defaults: Path | None


@reading()
def find_parts(
    path: str | Path,
    realcustom: str | Path | None = None,
    image_encoders: Sequence[str | Path] = (),
    tokenizers: Sequence[str | Path] = (),
    revision: str | None = None,
    unet: str | Path | None = None,
) -> Parts:
    """The parts of a model, their configs read; see `load`.

    Raises:
      UserError: for a path that is not there, a config that is missing or none of ours, or more image towers
        than two.
    """
    if isinstance(image_encoders, (str, Path)) or not isinstance(image_encoders, Sequence):
        raise UserError("image_encoders must be a list of one or two folders, also of one")
    if len(image_encoders) > len(IMAGE):
        raise UserError(f"there can be {len(IMAGE)} image encoders, not {len(image_encoders)}")
    if realcustom is not None:
        check_path("realcustom", realcustom)
    if not (revision is None or isinstance(revision, str)):
        raise UserError(f"revision must be a branch, tag or commit, not {shown(revision)}")
    towers = tuple(find_folder(one) for one in image_encoders)
    folder = TOYBOX if str(path) == "toybox" else find_folder(path, COMPONENTS, revision)
    if folder.is_file():
        base, own = _one_file(folder, tokenizers), {}
    else:
        if tokenizers:
            raise UserError(
                f"{str(folder)!r} has its own tokenizers; others go only with a one-file checkpoint"
            )
        optional = {
            name for name in (*IMAGE, TEXT[1], TOKENIZERS[1], "realcustom") if not (folder / name).is_dir()
        }
        names = [name for name in (*COMPONENTS, *TOKENIZERS, "scheduler") if name not in optional]
        own = {name: folder / name for name in names}
        base = folder_base(own)
    added_path = Path(realcustom) if realcustom else own.get("realcustom")
    base_keys = functools.cache(lambda: set(map(torch_key, flatten(unet_shapes(UNet(base.unet), 1, 0, 0)))))
    added = open_added(added_path, base_keys) if added_path else None
    if unet is not None:
        base = with_unet(base, find_folder(unet, ("", "unet")))
    elif added and added.base:
        _LOG.warning("%s also holds a base UNet, which is used instead of the one of %s", added_path, folder)
        base = with_tensors(base, added.base)
    towers = towers or tuple(own[name] for name in IMAGE if name in own)
    return Parts(base, towers, added, added_path if added_path and added_path.is_dir() else None)


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
    pipe = open_pipeline(parts, _read_models(parts, dtype))
    return pipe.replace(params=place_params(pipe.params, place))


@reading()
def open_pipeline(parts: Parts, models: Models) -> Pipeline:
    """A pipeline whose parameters are `LazyArray`s.

    Raises:
      UserError: when names or shapes of a component's tensors are not the module's.
    """
    shapes = {}
    for name in models.configs:
        if name not in IMAGE:
            with misfits(f"the config of {name}"):
                shapes[name] = models.component_shapes(name)
    base, added = split_added(shapes["unet"])
    params = {
        name: parts.base.open(name, base if name == "unet" else shape) for name, shape in shapes.items()
    }
    for name, folder, config in zip(IMAGE, parts.towers, models.image_configs, strict=False):
        _, params[name] = open_tower(folder, config.image_size)
    if parts.added:
        extra = open_params(parts.added.tensors, LAYOUTS["realcustom"], added)
        params["unet"] = join_added(params["unet"], extra)
    tokenizers = tuple(map(load_tokenizer, parts.base.tokenizers, parts.base.padding))
    params = {name: params[name] for name in models.configs}
    return Pipeline(models, parts.base.schedule, params, tokenizers, _load_defaults(parts, models))


def read_models(path: str | Path, dtype: Any = jnp.float32) -> Models:
    """The shapes of all components of a model folder.

    Raises:
      UserError: when a config is missing, is none of ours, or contradicts another.
    """
    return _read_models(find_parts(path), dtype)


def read_settings(parts: Parts) -> tuple[Models, ScheduleConfig, SamplingOptions]:
    """What a model says before its parameters are read: shapes, noise schedule, default options."""
    models = _read_models(parts, jnp.float32)
    return models, parts.base.schedule, _load_defaults(parts, models)


@reading()
def _read_models(parts: Parts, dtype: Any) -> Models:
    towers = [dataclasses.replace(read_tower(folder), position_prefix=True) for folder in parts.towers]
    # RealCustom++ runs DINOv2, which was trained at 518 pixels, at SigLIP's 384.
    towers = [dataclasses.replace(tower, image_size=towers[0].image_size) for tower in towers]
    base, added = parts.base, parts.added
    return Models(base.unet, base.vae, base.texts, tuple(towers), added.config if added else None, dtype)


def base_defaults(models: Models) -> SamplingOptions:
    """SDXL's sampling options for a UNet of its kind, else SD1.5's."""
    return SDXL if models.unet_config.addition_embed_type == "text_time" else SamplingOptions()


def _load_defaults(parts: Parts, models: Models) -> SamplingOptions:
    """The base's defaults, changed by `realcustom/sampling.json` where there is one."""
    path = parts.defaults and parts.defaults / "sampling.json"
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
      UserError: for a `weights_dtype` that is not one of `WEIGHT_DTYPES`, and for a folder that cannot be
        written to, or holds a part of another model that this one lacks.
    """
    check_dtype(weights_dtype)
    if not isinstance(path, (str, Path)):
        raise UserError(f"a model is saved to a folder, not to {shown(path)}")
    folder, models = Path(path), pipe.models
    make_folder(folder, "model folder")
    _check_no_other_parts(folder, models)
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
    write_json(folder / "model_index.json", index_json(models))
    for name, tokenizer in zip(TOKENIZERS, pipe.tokenizers, strict=False):
        save_tokenizer(tokenizer, folder / name)


_SCHEDULER = "DDIMScheduler"


def _check_no_other_parts(folder: Path, models: Models) -> None:
    """Raises UserError for a part that would stay of an earlier model, and be loaded with this one."""
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


def index_json(models: Models) -> dict[str, Any]:
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
