"""Where a run starts: its data set, and its model, from a folder or afresh."""

import dataclasses
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.data.image_text import Split, is_written, open_split
from realcustom_jax.data.tokenize import load_tokenizer
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.errors import UserError
from realcustom_jax.files import make_folder
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.models.family import IMAGE, Models
from realcustom_jax.models.init import init_params
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.toybox.dataset import WORLD_VERSION, write_dataset
from realcustom_jax.toybox.tokenizer import train_tokenizer
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import misfits, on_host
from realcustom_jax.weights.keys import check_keys, flatten, unflatten
from realcustom_jax.weights.lazy import LazyArray, Place, place_params

# Kernels that start at 0: customization begins as the base model, the base as a sum of skips.
_ZEROS = r"to_v_vision/kernel$|^unet/(conv_out|.*(conv2|proj_out))/kernel$"
_TOKENIZER_CAPTIONS = 5000
# What a run itself determines: by its captions, and by measuring.
_DETERMINED = ("text_encoder.vocab_size", "text_encoder.eos_token_id", "vae.scaling_factor")
# What `fresh` can change of a folder's shapes: the latents, where VAE and UNet meet.
_LATENTS = ("vae.latent_channels", "unet.in_channels", "unet.out_channels")


_ON_HOST = on_host(np.float32)


def open_data(options: ConfigDict, cache: Path) -> Split:
    """The training split of the config's `data`; "toybox" is drawn into `cache` once, by one process."""
    if options.path != "toybox":
        return open_split(options.path, options.split)
    make_folder(cache, "cache folder")
    folder = cache / f"toybox-v{WORLD_VERSION}-{options.toybox_examples}"
    with filelock.FileLock(f"{folder}.lock"):
        if not is_written(folder):
            shutil.rmtree(folder, ignore_errors=True)  # what an interrupted drawing left
            write_dataset(folder, train=options.toybox_examples)
    return open_split(folder, options.split)


def starting_pipeline(config: ConfigDict, data: Split | None, place: Place = _ON_HOST) -> Pipeline:
    """As `open_start`, with the parameters one by one where `place` puts them."""
    pipe = open_start(config, data)
    return pipe.replace(params=place_params(pipe.params, place))


def open_start(config: ConfigDict, data: Split | None) -> Pipeline:
    """The model that a run begins with; its parameters are read, or initialised, when they are used.

    From `config.init_from` where given, with the realcustom of `config.model` if it has none, with the image
    towers that it lacks where the run trains them, and with parameters that `config.fresh` finds initialised
    again, for latents of another width too where they do not fit the folder's; else fresh, of the shapes in
    `config.model`, with a tokenizer learned from the captions.

    Raises:
      UserError: when `init_from` and `config.model` contradict each other, or `fresh` finds no parameter.
    """
    if config.init_from:
        return _from_folder(config)
    with tempfile.TemporaryDirectory() as folder:
        captions = (data[i]["caption"] for i in range(min(len(data), _TOKENIZER_CAPTIONS)))
        train_tokenizer(captions, folder)
        tokenizer = load_tokenizer(folder)
    configs = config.model.to_dict()
    configs["text_encoder"] |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    models, shapes = _fresh_models(configs)
    params = unflatten(_initialised(flatten(shapes), config.seed))
    return Pipeline(models, from_mapping(ScheduleConfig, configs["scheduler"]), params, (tokenizer,))


def _initialised(shapes: Mapping[str, Any], seed: int) -> dict[str, LazyArray]:
    """Fresh parameters by their paths; each depends on its own path alone."""

    def reader(path: str, leaf: Any) -> Callable[[], np.ndarray]:
        return lambda: flatten(init_params(unflatten({path: leaf}), seed, _ZEROS))[path]

    return {path: LazyArray(tuple(leaf.shape), reader(path, leaf)) for path, leaf in shapes.items()}


def _fresh_models(configs: Mapping[str, Mapping[str, Any]]) -> tuple[Models, Any]:
    """The modules of a config's `model`, and their parameters as shapes.

    Raises:
      UserError: they are no network, or one that is larger than the memory.
    """
    with misfits("config.model"):
        models = Models.from_configs(configs)
        shapes = models.param_shapes()
    for name, tower in zip(IMAGE, models.image_configs, strict=False):
        if tower.patch_size > tower.image_size:
            raise UserError(
                f"config.model.{name}.patch_size is {tower.patch_size}, larger than its image_size, "
                f"{tower.image_size}"
            )
    size = 4 * sum(math.prod(leaf.shape) for leaf in flatten(shapes).values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"config.model: the parameters take {size / 2**30:,.1f} GiB, but this machine has "
            f"{memory / 2**30:,.1f}"
        )
    return models, shapes


def check_start(config: ConfigDict) -> None:
    """Look for the model folder that a run begins with, before anything is loaded.

    A path that is not there must not be taken for the id of a hub repository: "models/sdxl" could be one.

    Raises:
      UserError: it is not there.
    """
    folder = config.init_from
    if folder in ("", "toybox"):
        return
    try:
        found = Path(folder).exists()
    except OSError:  # a name that is too long
        found = False
    if not found:
        raise UserError(
            f"config.init_from: there is no model folder {folder!r} in {Path.cwd()}; "
            "python -m realcustom_jax.convert --out makes one, also of repositories of the hub"
        )


def starting_models(config: ConfigDict) -> Models:
    """The shapes of the model that a run begins with, from configs alone; of a fresh one without vocabulary.

    Raises:
      UserError: `init_from` is not there, or its configs cannot be read.
    """
    given = config.get("model", ConfigDict()).to_dict()
    if not config.init_from:
        return Models.from_configs(given)
    check_start(config)
    models = pipeline.read_models(config.init_from)
    return _changed(models, given, _trained_towers(config, models))


def _from_folder(config: ConfigDict) -> Pipeline:
    check_start(config)
    pipe = pipeline.open_model(config.init_from)
    given = config.get("model", ConfigDict()).to_dict()
    towers = _trained_towers(config, pipe.models)
    _check_same_model(config.init_from, pipe, given, towers)
    models = _changed(pipe.models, given, towers)

    def again(path: str) -> bool:
        return bool(config.fresh and re.search(config.fresh, path))

    wanted = flatten(pipe.params if models == pipe.models else models.param_shapes())
    if config.fresh and not any(map(again, wanted)):
        raise UserError(f"config.fresh: {config.fresh!r} matches no parameter")
    kept = {path: value for path, value in flatten(pipe.params).items() if not again(path)}
    added = [f"^{name}/" for name in towers] + [ADDED] * (pipe.models.realcustom is None)
    new = {
        path: leaf
        for path, leaf in wanted.items()
        if again(path) or any(re.search(regex, path) for regex in added)
    }
    rest = {path: leaf.shape for path, leaf in wanted.items() if path not in new}
    check_keys(config.init_from, rest, {path: value.shape for path, value in kept.items()})
    return pipe.replace(models=models, params=unflatten(kept | _initialised(new, config.seed)))


def _trained_towers(config: ConfigDict, models: Models) -> list[str]:
    """Image towers of the config's `model` that a folder's `models` lack and the run trains.

    One that it does not train would stay as random as it begins.
    """
    lacking = [name for name in IMAGE if name in config.get("model", {}) and name not in models.configs]
    kernel = "{}/vision_model/embeddings/patch_embedding/kernel"
    return [
        name for name in lacking if any(re.search(regex, kernel.format(name)) for regex in config.trainable)
    ]


def _changed(models: Models, given: Mapping[str, Mapping[str, Any]], towers: Sequence[str]) -> Models:
    """The modules with what a config's `model` may change: width of the latents, added towers, realcustom."""
    changes: dict[str, dict[str, int]] = {"unet": {}, "vae": {}}
    for part, name in (key.split(".") for key in _LATENTS):
        if name in given.get(part, {}):
            changes[part][name] = given[part][name]
    unet, vae = (dataclasses.replace(models.configs[part], **changes[part]) for part in ("unet", "vae"))
    added = [from_mapping(ViTConfig, given[name]) for name in towers]
    realcustom = models.realcustom
    if "realcustom" in given:
        realcustom = from_mapping(RealCustomConfig, given["realcustom"])
    images = (*models.image_configs, *added)
    return dataclasses.replace(
        models, unet_config=unet, vae_config=vae, image_configs=images, realcustom=realcustom
    )


def _check_same_model(
    folder: str, pipe: Pipeline, given: Mapping[str, Mapping[str, Any]], towers: Sequence[str]
) -> None:
    """A folder's shapes cannot be changed: a config that asks for others must not be ignored.

    `realcustom` and the latents' width may differ, where the parameters of another shape are fresh, and
    `towers` are added.
    """
    parts = {
        **pipe.models.configs,
        "scheduler": pipe.schedule,
    }
    for part in given.keys() - {"realcustom", *towers} - parts.keys():
        raise UserError(f"config.model has a {part}, but the model in {folder!r} has none")
    for part, own in parts.items():
        for name, value in given.get(part, {}).items():
            has = getattr(own, name)
            value = tuple(value) if isinstance(value, list) else value
            if f"{part}.{name}" not in (*_DETERMINED, *_LATENTS) and value != has:
                raise UserError(
                    f"config.model.{part}.{name} is {value}, but the model in {folder!r} has {has}, "
                    "which training from it cannot change"
                )
