"""`Pipeline`: a model in memory, with parameters, tokenizers and noise schedule; loading and saving."""

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
from realcustom_jax.common.files import make_folder, reading, write_json
from realcustom_jax.common.memory import return_freed_memory
from realcustom_jax.common.precision import resolve_dtype, vae_compute_dtype
from realcustom_jax.common.progress import Progress, check_progress
from realcustom_jax.common.rules import shown
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.inputs.encoder_pair import load_pair
from realcustom_jax.inputs.matching import Matcher
from realcustom_jax.inputs.recogniser import MODEL_TYPE, WordRecogniser
from realcustom_jax.inputs.tokenize import load_tokenizer, save_tokenizer
from realcustom_jax.models.family import IMAGE, Models
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.options import SDXL, SamplingOptions
from realcustom_jax.weights.bases import TOKENIZERS
from realcustom_jax.weights.components import (
    LAYOUTS,
    check_dtype,
    misfits,
    on_device,
    on_host,
    open_params,
    read_config,
)
from realcustom_jax.weights.folder import write_folder
from realcustom_jax.weights.hub import find_folder
from realcustom_jax.weights.keys import join_added, split_added
from realcustom_jax.weights.lazy import Place, place_params
from realcustom_jax.weights.parts import MATCHER, Parts, find_parts, models_of
from realcustom_jax.weights.reading import read_with_progress
from realcustom_jax.weights.towers import open_tower


@dataclasses.dataclass(frozen=True, repr=False)
class Pipeline:
    """A model in memory: everything that sampling and training need.

    Attributes:
      models: configs and modules; static.
      schedule: the noise schedule; static.
      params: {component: `params` tree}; see `Models`.
      tokenizers: one per text encoder.
      defaults: default sampling options.
      matcher: finds the words of subjects whose words are "auto"; None if the model cannot.
      mesh: the devices among which `sample` divides a batch, along the first axis; None for the default
        device.
      source: the arguments of `load` that change the images: {"model": path, "dtype": name, …}. Empty if the
        model was not loaded.
    """

    models: Models
    schedule: ScheduleConfig
    params: Mapping[str, Any]
    tokenizers: tuple[PreTrainedTokenizerBase, ...]
    defaults: SamplingOptions = SamplingOptions()
    matcher: Matcher | None = None
    mesh: Mesh | None = None
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # Results that depend only on the parameters, such as a black image's features. `replace` starts with an
    # empty cache (init=False), because it may change the parameters.
    cache: dict[str, Any] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

    def __repr__(self) -> str:
        """Model, devices, components and changed defaults, in a few lines."""
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
        """A pipeline with the parameters copied to each device of a mesh; `sample` divides batches on it."""
        params = jax.device_put(dict(self.params), NamedSharding(mesh, PartitionSpec()))
        # Unbound: `Devices` may use fewer devices of the mesh, if a batch has fewer rows.
        models = dataclasses.replace(self.models, flash=flash_attention(mesh, bind=False))
        return self.replace(params=params, models=models, mesh=mesh)

    @property
    def offloaded(self) -> bool:
        """Whether parameters are loaded to the devices at each use."""
        return isinstance(self.params, Offloaded)

    def replace(self, **changes: Any) -> "Pipeline":
        """A copy with changed attributes and an empty cache."""
        return dataclasses.replace(self, **changes)


class Offloaded(Mapping[str, Any]):
    """{component: its parameters}, loaded to the devices at each access.

    The caller drops its references after use, which frees the memory. Each access reads the files again; the
    operating system caches them if memory allows.
    """

    def __init__(self, params: Mapping[str, Any], place: Place):
        """Arguments as in `place_params`; `place` takes paths such as "unet/conv_in/bias"."""
        self._params = params
        self._place = place

    def __getitem__(self, name: str) -> Any:
        return_freed_memory()  # of the component that was used before
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
    """Load a model. Each tensor goes from disk directly to its dtype and its devices.

    Args:
      path: a folder in the diffusers layout, with `image_encoder/` and `realcustom/` for subjects; the hub id
        of such a folder; an original one-file checkpoint of SD1.5 or SDXL; or "toybox", the model that ships
        with the package.
      dtype: compute dtype: "auto" (bfloat16 on TPUs and GPUs, float32 on CPUs), "float32", "bfloat16", or a
        dtype of numpy or JAX.
      param_dtype: dtype of the parameters; default `dtype`. Parameters of the scoring are always float32.
      sharding: where parameters are placed: a `jax.sharding.Sharding` for all, or a function of a parameter's
        path ("unet/conv_in/kernel") and shape that returns one. Default: copied to each device of the mesh.
      vae_dtype: dtype of the VAE and its parameters. "auto" is float32, or `dtype` if the VAE's config has
        `"force_upcast": false`.
      mesh: the devices among which `sample` divides a batch, along the first axis. Default: all devices of
        this process.
      offload: whether only the component in use (text encoders, image towers, UNet, VAE) is on the devices.
        For models that are larger than the memory of the devices, or of a machine without devices.
      unet: a base UNet of the same shape, instead of the model's own: a folder, a hub id, or a file in the
        layout of diffusers, Flax or the original code.
      realcustom: RealCustom's added parts, instead of the folder's own: a `realcustom/` folder, or a
        checkpoint file such as the published RealCustom++. They fit any base of the same shape. If the file
        also contains the base UNet, that is used unless `unet` is given.
      image_encoders: one or two image towers instead of the folder's own: folders or hub ids, of transformers
        or timm. All run at the image size of the first.
      matcher: finds the words of subjects with the words "auto": a complete CLIP model, as a folder or hub id
        of transformers, or a folder of `toybox.train_recogniser`. Default: the model's own `matcher/`, or its
        encoders if they were trained as a pair.
      tokenizers: tokenizers for a one-file checkpoint, which contains none: a folder or hub id per text
        encoder.
        Default: those of SD1.5 and SDXL on the hub.
      revision: branch, tag or commit of a hub repository at `path`.
      progress: whether to report on stderr if loading takes longer than two seconds. Default True.

    Returns:
      The pipeline, for `sample` and training.

    Raises:
      UserError: if a part is missing or does not fit (weights are compared key by key); for an argument of a
        wrong type, an unknown dtype, or a revision of a model that is not on the hub.
    """
    if not isinstance(path, (str, Path)):
        raise UserError(f"a model is loaded from a folder, a file or a hub id, not from {shown(path)}")
    if not (sharding is None or callable(sharding) or isinstance(sharding, Sharding)):
        raise UserError(f"sharding must be a jax.sharding.Sharding or a function, not {shown(sharding)}")
    if not (mesh is None or isinstance(mesh, Mesh)):
        raise UserError(f"mesh must be a jax.sharding.Mesh, not {shown(mesh)}")
    if mesh is None:  # local devices: each process of several hosts samples its own batches
        mesh = Mesh(np.asarray(jax.local_devices()), ("data",))
    compute = resolve_dtype(dtype, mesh)
    # "common", because the VAE and the scoring have dtypes of their own; see `dtype_of_param`.
    common = compute if param_dtype is None else resolve_dtype(param_dtype, mesh, "param_dtype")
    with Progress(check_progress(progress)) as report:
        report.stage(f"loading {path}")
        parts = find_parts(path, realcustom, image_encoders, tokenizers, revision, unet)
        models = models_of(parts, compute)
        vae = vae_compute_dtype(vae_dtype, compute, models.vae_config.force_upcast, mesh)
        models = dataclasses.replace(models, vae_dtype=vae, flash=flash_attention(mesh, bind=False))
        pipe = open_pipeline(parts, models)
        # Before the model's parameters, which take minutes to read, so that a wrong path is an error at once.
        pair = pipe.matcher if matcher is None else load_matcher(matcher)
        dtypes = functools.partial(dtype_of_param, common, vae or common)
        place = on_device(dtypes, NamedSharding(mesh, PartitionSpec()) if sharding is None else sharding)
        params = (
            Offloaded(pipe.params, place)
            if offload
            else read_with_progress(pipe.params, place, report, dtypes)
        )
    # `source` records what `sample --from` needs to load the same model.
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


def load_matcher(name: str | Path) -> Matcher:
    """Load a model that finds words: a CLIP, or a recogniser; see `load`.

    Raises:
      UserError: if it is neither, or its weights do not fit.
    """
    folder = find_folder(name)
    if read_config(folder).get("model_type") == MODEL_TYPE:
        return WordRecogniser.load(folder)
    return load_pair(folder)


def dtype_of_param(common: Any, vae: Any, path: str) -> Any:
    """Dtype of a parameter, by its path in the model ("unet/conv_in/kernel").

    Args:
      common: dtype of most parameters.
      vae: dtype of the VAE's parameters.
      path: the path.
    """
    if re.search(r"(^|/)scoring/", path):  # scores are computed in float32, and these parameters are few
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
    """Like `load`, but with `LazyArray`s as parameters, which are read from their files on use."""
    parts = find_parts(path, realcustom, image_encoders, tokenizers, unet=unet)
    return open_pipeline(parts, models_of(parts, dtype))


def load_on_host(path: str | Path, dtype: Any = jnp.float32, **parts: Any) -> Pipeline:
    """Like `open_model`, with float32 numpy arrays as parameters."""
    pipe = open_model(path, dtype=dtype, **parts)
    return pipe.replace(params=place_params(pipe.params, on_host(jnp.float32)))


@reading()
def open_pipeline(parts: Parts, models: Models) -> Pipeline:
    """A pipeline with `LazyArray`s as parameters.

    Raises:
      UserError: if names or shapes of a component's tensors differ from those of its module.
    """
    # Image towers have their own loader: their position embeddings may need resizing to another image size.
    shapes = {}
    for name in models.configs:
        if name not in IMAGE:
            with misfits(f"the config of {name}"):
                shapes[name] = models.component_shapes(name)
    # The added parameters are in the UNet's tree, but in files of their own (`realcustom/`).
    base, added = split_added(shapes["unet"])
    params = {
        name: parts.base.open(name, base if name == "unet" else shape) for name, shape in shapes.items()
    }
    for name, folder, config in zip(IMAGE, parts.towers, models.image_configs, strict=False):
        _, params[name] = open_tower(folder, config.image_size)
    if parts.added:  # None for a base without RealCustom
        extra = open_params(parts.added.tensors, LAYOUTS["realcustom"], added)
        params["unet"] = join_added(params["unet"], extra)
    tokenizers = tuple(map(load_tokenizer, parts.base.tokenizers, parts.base.padding))
    params = {name: params[name] for name in models.configs}  # in the order of the configs
    matcher = WordRecogniser.load(parts.matcher) if parts.matcher else None
    return Pipeline(models, parts.base.schedule, params, tokenizers, _load_defaults(parts, models), matcher)


def read_models(path: str | Path, dtype: Any = jnp.float32) -> Models:
    """The configs of all components of a model folder.

    Raises:
      UserError: if a config is missing, unsupported, or contradicts another one.
    """
    return models_of(find_parts(path), dtype)


def read_settings(parts: Parts) -> tuple[Models, ScheduleConfig, SamplingOptions]:
    """Configs, noise schedule and default options of a model, without reading its parameters."""
    models = models_of(parts, jnp.float32)  # the dtype does not change shapes or options
    return models, parts.base.schedule, _load_defaults(parts, models)


def base_defaults(models: Models) -> SamplingOptions:
    """Default sampling options of the base: SDXL's for a UNet of SDXL's kind, else SD1.5's."""
    # Only SDXL's UNet has this embedding of pooled text and sizes.
    return SDXL if models.unet_config.addition_embed_type == "text_time" else SamplingOptions()


def _load_defaults(parts: Parts, models: Models) -> SamplingOptions:
    """The defaults of the base, changed by `realcustom/sampling.json` if it exists."""
    path = parts.defaults and parts.defaults / "sampling.json"
    if path is None or not path.is_file():
        return base_defaults(models)
    try:
        return base_defaults(models).changed(read_config(path.parent, path.name))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


# ---------------------------------------------------------------- saving


def save(pipe: Pipeline, path: str | Path, weights_dtype: str = "float32") -> None:
    """Write a model folder for `load`. diffusers and transformers can read their components of it.

    Args:
      pipe: the model.
      path: the folder.
      weights_dtype: dtype of the weights in the files, one of `WEIGHT_DTYPES`.

    Raises:
      UserError: for a `weights_dtype` that is not one of `WEIGHT_DTYPES`, and for a folder that cannot be
        written to, or holds a part of another model that this one lacks.
    """
    check_dtype(weights_dtype)
    if not isinstance(path, (str, Path)):
        raise UserError(f"a model is saved to a folder, not to {shown(path)}")
    folder = Path(path)
    make_folder(folder, "model folder")
    if not isinstance(pipe.matcher, WordRecogniser) and (folder / MATCHER).exists():
        raise UserError(f"the folder {str(folder)!r} has a {MATCHER}/, which this model lacks: remove it")
    write_folder(folder, pipe, weights_dtype)
    # Only the differences, so that the file shows what is special about the model.
    if pipe.models.realcustom:
        base = dataclasses.asdict(base_defaults(pipe.models))
        changes = {k: v for k, v in dataclasses.asdict(pipe.defaults).items() if v != base[k]}
        write_json(folder / "realcustom" / "sampling.json", changes)
    if isinstance(pipe.matcher, WordRecogniser):
        pipe.matcher.save(folder / MATCHER)
    # SD1.5 has one tokenizer, SDXL two.
    for name, tokenizer in zip(TOKENIZERS, pipe.tokenizers, strict=False):
        save_tokenizer(tokenizer, folder / name)


# ---------------------------------------------------------------- flags of the commands that load a model


def model_settings(args: argparse.Namespace) -> tuple[Models, ScheduleConfig, SamplingOptions]:
    """`read_settings` of the model that the flags select."""
    return read_settings(
        find_parts(
            args.model, args.realcustom, args.image_encoder, args.tokenizer, args.revision, unet=args.unet
        )
    )


def load_model(args: argparse.Namespace, **more: Any) -> Pipeline:
    """Load the model that the flags select; `more` are further arguments of `load`."""
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
