"""The start of a run: its data set, and its model, read from a folder or initialised."""

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
import jax
import numpy as np

from realcustom_jax import pipeline
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder
from realcustom_jax.common.progress import Progress
from realcustom_jax.data.image_text import Split, is_written, open_split
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.inputs.tokenize import load_tokenizer
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.models.family import IMAGE, Models
from realcustom_jax.models.init import init_params
from realcustom_jax.models.vit import ViTConfig
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.toybox.dataset import WORLD_VERSION, write_dataset
from realcustom_jax.toybox.tokenizer import train_tokenizer
from realcustom_jax.training.batches import DataConfig
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import misfits, on_host
from realcustom_jax.weights.keys import check_keys, flatten, unflatten
from realcustom_jax.weights.lazy import LazyArray, Place
from realcustom_jax.weights.reading import read_with_progress

# Kernels initialised with 0. Customization then starts as exactly the base model, and a new UNet as the
# identity of its residual blocks, which trains more stably.
_ZEROS = r"to_v_vision/kernel$|^unet/(conv_out|.*(conv2|proj_out))/kernel$"
_TOKENIZER_CAPTIONS = 5000  # enough for the toybox's vocabulary; reading all captions would take minutes
# Fields that the run computes itself: from its captions, or by measuring its latents.
_COMPUTED_FIELDS = ("text_encoder.vocab_size", "text_encoder.eos_token_id", "vae.scaling_factor")
# Fields that may differ from the folder's when `fresh` re-initialises the layers: the width of the latents.
_LATENTS = ("vae.latent_channels", "unet.in_channels", "unet.out_channels")


_ON_HOST = on_host(np.float32)


def open_data(options: DataConfig, cache: Path) -> Split:
    """The training split of the config's `data`. The toybox is drawn into `cache` if it is not there yet."""
    if options.path != "toybox":
        return open_split(options.path, options.split)
    make_folder(cache, "cache folder")
    folder = cache / f"toybox-v{WORLD_VERSION}-{options.toybox_examples}"
    # Several processes of one machine may start at once: one draws, the others wait for it.
    with filelock.FileLock(f"{folder}.lock"):
        if not is_written(folder):
            shutil.rmtree(folder, ignore_errors=True)  # left by an interrupted run
            write_dataset(folder, train=options.toybox_examples)
    return open_split(folder, options.split)


def starting_pipeline(config: TrainConfig, data: Split | None, place: Place = _ON_HOST) -> Pipeline:
    """`open_start` with its parameters read, each one placed by `place`."""
    pipe = open_start(config, data)
    what = "reading the model" if config.init_from else "initialising the model"
    with Progress(jax.process_index() == 0) as progress:
        return pipe.replace(params=read_with_progress(pipe.params, place, progress, what=what))


def open_start(config: TrainConfig, data: Split | None) -> Pipeline:
    """The model that a run starts with. Parameters are lazy: read or initialised when they are used.

    With `config.init_from`, the model is read from that folder, with these changes:
      - `realcustom` of `config.model` is added if the folder has none;
      - image towers of `config.model` that the folder lacks are added if the run trains them;
      - parameters that match `config.fresh` are initialised again, also with another latent width.
    Without it, the model is new: its shapes come from `config.model`, its tokenizer from the captions.

    Raises:
      UserError: `init_from` and `config.model` contradict each other, or `fresh` matches no parameter.
    """
    if config.init_from:
        return _from_folder(config)
    assert data is not None
    # A tokenizer can be loaded from a folder only.
    with tempfile.TemporaryDirectory() as folder:
        captions = (data[i]["caption"] for i in range(min(len(data), _TOKENIZER_CAPTIONS)))
        train_tokenizer(captions, folder)
        tokenizer = load_tokenizer(folder)
    configs = {part: dict(fields) for part, fields in config.model.items()}
    configs["text_encoder"] |= {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    models, shapes = _fresh_models(configs)
    params = unflatten(_initialised(flatten(shapes), config.seed))
    return Pipeline(models, from_mapping(ScheduleConfig, configs["scheduler"]), params, (tokenizer,))


def _initialised(shapes: Mapping[str, Any], seed: int) -> dict[str, LazyArray]:
    """Lazily initialised parameters by their paths."""

    # A value depends on the seed and its own path alone, so it does not matter which others are initialised.
    def reader(path: str, leaf: Any) -> Callable[[], np.ndarray]:
        return lambda: flatten(init_params(unflatten({path: leaf}), seed, _ZEROS))[path]

    return {path: LazyArray(tuple(leaf.shape), reader(path, leaf)) for path, leaf in shapes.items()}


def _fresh_models(configs: Mapping[str, Mapping[str, Any]]) -> tuple[Models, Any]:
    """The modules of a config's `model` section, and the shapes of their parameters.

    Raises:
      UserError: the shapes do not fit together, or the parameters do not fit into the machine's memory.
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
    # float32. A typing mistake in a width asks for terabytes, which the kernel answers with a plain kill.
    size = 4 * sum(math.prod(leaf.shape) for leaf in flatten(shapes).values())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise UserError(
            f"config.model: the parameters take {size / 2**30:,.1f} GiB, but this machine has "
            f"{memory / 2**30:,.1f}"
        )
    return models, shapes


def check_start(config: TrainConfig) -> None:
    """Check that the folder in `init_from` exists, before anything is loaded.

    Raises:
      UserError: it does not exist.
    """
    folder = config.init_from
    if folder in ("", "toybox"):
        return
    # A missing path such as "models/sdxl" could also be a hub id. Training never downloads a model.
    try:
        exists = Path(folder).exists()
    except OSError:  # the name is too long
        exists = False
    if not exists:
        raise UserError(
            f"config.init_from: there is no model folder {folder!r} in {Path.cwd()}; "
            "python -m realcustom_jax.convert --out makes one, also from hub repositories"
        )


def starting_models(config: TrainConfig) -> Models:
    """The modules that a run starts with, from configs alone. A new model has no vocabulary size yet.

    Raises:
      UserError: `init_from` does not exist, or its configs cannot be read.
    """
    given = config.model
    if not config.init_from:
        return Models.from_configs(given)
    check_start(config)
    models = pipeline.read_models(config.init_from)
    return _changed(models, given, _trained_towers(config, models))


def _from_folder(config: TrainConfig) -> Pipeline:
    """The model of `config.init_from`, with the changes that `open_start` lists."""
    check_start(config)
    pipe = pipeline.open_model(config.init_from)
    given = config.model
    towers = _trained_towers(config, pipe.models)
    _check_same_model(config.init_from, pipe, given, towers)
    models = _changed(pipe.models, given, towers)

    def again(path: str) -> bool:
        return bool(config.fresh and re.search(config.fresh, path))

    required = flatten(pipe.params if models == pipe.models else models.param_shapes())
    if config.fresh and not any(map(again, required)):
        raise UserError(f"config.fresh: {config.fresh!r} matches no parameter")
    kept = {path: value for path, value in flatten(pipe.params).items() if not again(path)}
    added = [f"^{name}/" for name in towers] + [ADDED] * (pipe.models.realcustom is None)
    new = {
        path: leaf
        for path, leaf in required.items()
        if again(path) or any(re.search(regex, path) for regex in added)
    }
    # Everything that is not initialised here must come from the folder, and nothing may be left over.
    rest = {path: leaf.shape for path, leaf in required.items() if path not in new}
    check_keys(config.init_from, rest, {path: value.shape for path, value in kept.items()})
    return pipe.replace(models=models, params=unflatten(kept | _initialised(new, config.seed)))


def _trained_towers(config: TrainConfig, models: Models) -> list[str]:
    """Names of image towers that the folder lacks, `config.model` describes and the run trains."""
    # A new tower that does not train would keep its random values, so it is not added.
    lacking = [name for name in IMAGE if name in config.model and name not in models.configs]
    kernel = "{}/vision_model/embeddings/patch_embedding/kernel"
    return [
        name for name in lacking if any(re.search(regex, kernel.format(name)) for regex in config.trainable)
    ]


def _changed(models: Models, given: Mapping[str, Mapping[str, Any]], towers: Sequence[str]) -> Models:
    """The modules with the changes that a config may ask for: latent width, added towers, realcustom."""
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
    """Check that `config.model` describes the folder's model.

    `realcustom`, the added `towers` and the width of the latents may differ.

    Raises:
      UserError: another field differs. Ignoring it would train another model than the config describes.
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
            if f"{part}.{name}" not in (*_COMPUTED_FIELDS, *_LATENTS) and value != has:
                raise UserError(
                    f"config.model.{part}.{name} is {value}, but the model in {folder!r} has {has}, "
                    "which training from it cannot change"
                )
