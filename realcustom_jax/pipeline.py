"""A model folder in memory: modules, parameters, tokenizers and noise schedule; loading and saving it."""

import argparse
import dataclasses
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from transformers import PreTrainedTokenizerBase

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.memory import return_freed_memory
from realcustom_jax.common.precision import AUTO, COMPUTE_DTYPES, resolve_dtype, vae_compute_dtype
from realcustom_jax.common.progress import Progress, check_progress
from realcustom_jax.common.rules import shown
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.inputs.encoder_pair import load_pair
from realcustom_jax.inputs.matching import Matcher
from realcustom_jax.inputs.tokenize import load_tokenizer, save_tokenizer
from realcustom_jax.models.family import IMAGE, Models
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.weights.bases import TOKENIZERS
from realcustom_jax.weights.components import (
    LAYOUTS,
    on_device,
    on_host,
    open_params,
    read_config,
    write_json,
)
from realcustom_jax.weights.folder import write_folder
from realcustom_jax.weights.keys import join_added, split_added
from realcustom_jax.weights.lazy import Place, place_params
from realcustom_jax.weights.parts import Parts, find_parts, models_of
from realcustom_jax.weights.reading import read_with_progress
from realcustom_jax.weights.towers import open_tower


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
      source: what `load` was given: {"model": path, "dtype": name, …}, of the parts those that were given,
        and the parameters' dtype where it is another; empty where it was not loaded.
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
    progress: bool | None = None,
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
      revision: branch, tag or commit of a hub repository at `path`.
      progress: whether to say on stderr how far it is, where it takes longer than two seconds. Default yes.

    Raises:
      UserError: when a part is missing or does not fit (weights are compared key by key); for an argument of
        a wrong type, an unknown dtype, or a revision of what is not on the hub.
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
    common = compute if param_dtype is None else resolve_dtype(param_dtype, mesh, "param_dtype")
    with Progress(check_progress(progress)) as told:
        told.stage(f"loading {path}")
        parts = find_parts(path, realcustom, image_encoders, tokenizers, revision, unet)
        models = models_of(parts, compute)
        vae = vae_compute_dtype(vae_dtype, compute, models.vae_config.force_upcast, mesh)
        models = dataclasses.replace(models, vae_dtype=vae, flash=flash_attention(mesh, bind=False))
        pipe = open_pipeline(parts, models)
        # Before the model's parameters, which take minutes: a wrong path is told at once.
        pair = None if matcher is None else load_pair(matcher)
        dtypes = functools.partial(dtype_of_param, common, vae or common)
        place = on_device(dtypes, NamedSharding(mesh, PartitionSpec()) if sharding is None else sharding)
        params = (
            Offloaded(pipe.params, place) if offload else read_with_progress(pipe.params, place, told, dtypes)
        )
    names = {"dtype": jnp.dtype(compute).name, "vae_dtype": jnp.dtype(vae or compute).name}
    given = {
        "revision": revision,
        "param_dtype": None if jnp.dtype(common) == jnp.dtype(compute) else jnp.dtype(common).name,
        "unet": unet and str(unet),
        "realcustom": realcustom and str(realcustom),
        "image_encoders": list(map(str, image_encoders)),
        "tokenizers": list(map(str, tokenizers)),
    }
    source = {"model": str(path), **names, **{name: value for name, value in given.items() if value}}
    return pipe.replace(params=params, matcher=pair, mesh=mesh, source=source)


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
    return open_pipeline(parts, models_of(parts, dtype))


def load_on_host(path: str | Path, dtype: Any = jnp.float32, **parts: Any) -> Pipeline:
    """As `open_model`, with numpy float32 parameters."""
    pipe = open_model(path, dtype=dtype, **parts)
    return pipe.replace(params=place_params(pipe.params, on_host(jnp.float32)))


def open_pipeline(parts: Parts, models: Models) -> Pipeline:
    """A pipeline whose parameters are `LazyArray`s.

    Raises:
      UserError: when names or shapes of a component's tensors are not the module's.
    """
    shapes = {name: models.component_shapes(name) for name in models.configs if name not in IMAGE}
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
    return models_of(find_parts(path), dtype)


def read_settings(parts: Parts) -> tuple[Models, ScheduleConfig, SamplingOptions]:
    """What a model says before its parameters are read: shapes, noise schedule, default options."""
    models = models_of(parts, jnp.float32)
    return models, parts.base.schedule, _load_defaults(parts, models)


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


# ---------------------------------------------------------------- saving


def save(pipe: Pipeline, path: str | Path, weights_dtype: str = "float32") -> None:
    """Write a model folder that `load` reads, and of which diffusers and transformers read their parts.

    Raises:
      UserError: for a `weights_dtype` that is not one of `WEIGHT_DTYPES`.
    """
    folder = Path(path)
    write_folder(folder, pipe, weights_dtype)
    if pipe.models.realcustom:
        base = dataclasses.asdict(base_defaults(pipe.models))
        changes = {k: v for k, v in dataclasses.asdict(pipe.defaults).items() if v != base[k]}
        write_json(folder / "realcustom" / "sampling.json", changes)
    for name, tokenizer in zip(TOKENIZERS, pipe.tokenizers, strict=False):
        save_tokenizer(tokenizer, folder / name)


# ---------------------------------------------------------------- flags of the commands that load a model


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    """Add --model, None where it is not given, and the flags of parts, precision and memory."""
    group = parser.add_argument_group("the model")
    group.add_argument("--model", metavar="MODEL", help="model folder or file, hub id, or toybox (default)")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub id")
    group.add_argument("--unet", metavar="PATH", help="another base UNet of the same shape: folder or file")
    group.add_argument("--realcustom", metavar="PATH", help="folder or file of what RealCustom adds")
    group.add_argument(
        "--image-encoder", action="append", default=[], metavar="FOLDER", help="image tower; once or twice"
    )
    group.add_argument(
        "--tokenizer", action="append", default=[], metavar="FOLDER",
        help="of a one-file checkpoint, for each text encoder; default those on the hub",
    )  # fmt: skip
    add_precision_flags(group)
    group.add_argument("--param-dtype", choices=COMPUTE_DTYPES, help="of the parameters alone (as --dtype)")
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep only the part that works on the devices: for small memory",
    )


def add_precision_flags(
    parser: argparse._ActionsContainer, default: str = AUTO, of: str = "parameters and computation"
) -> None:
    """Add --dtype, which is `of` these, and --vae-dtype."""
    choices = (AUTO, *COMPUTE_DTYPES)
    parser.add_argument(
        "--dtype", choices=choices, default=default,
        help=f"of {of}; auto: float32 on CPUs, bfloat16 elsewhere (%(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--vae-dtype", choices=choices, default=default,
        help="of the VAE; auto: float32, unless its config allows less (%(default)s)",
    )  # fmt: skip


def model_settings(args: argparse.Namespace) -> tuple[Models, ScheduleConfig, SamplingOptions]:
    """What the model that the flags ask for says before its parameters are read; see `read_settings`."""
    return read_settings(
        find_parts(
            args.model, args.realcustom, args.image_encoder, args.tokenizer, args.revision, unet=args.unet
        )
    )


def given_model(args: argparse.Namespace) -> dict[str, Any]:
    """{argument of `load`: its value} of the parts and dtypes that were given, to keep or to compare."""
    values = {name: getattr(args, flag) for name, flag in FLAGS.items()}
    return {name: value for name, value in values.items() if value not in NOT_GIVEN}


# {argument of `load`: the flag's name in the arguments}, of all that changes the images.
FLAGS = {
    "revision": "revision",
    "unet": "unet",
    "realcustom": "realcustom",
    "image_encoders": "image_encoder",
    "tokenizers": "tokenizer",
    "dtype": "dtype",
    "param_dtype": "param_dtype",
    "vae_dtype": "vae_dtype",
}
NOT_GIVEN = (None, [], AUTO)


def load_model(args: argparse.Namespace, **more: Any) -> Pipeline:
    """The model that the flags ask for; `more` goes to `load` too."""
    return load(
        args.model,
        dtype=args.dtype,
        param_dtype=args.param_dtype,
        vae_dtype=args.vae_dtype,
        offload=args.offload,
        revision=args.revision,
        unet=args.unet,
        realcustom=args.realcustom,
        image_encoders=args.image_encoder,
        tokenizers=args.tokenizer,
        **more,
    )
