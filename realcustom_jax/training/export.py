"""The result of a run: its model folder, or an adapter exported from a checkpoint."""

import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from realcustom_jax import pipeline
from realcustom_jax.common.compile_cache import cache_dir
from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import write_json
from realcustom_jax.common.folders import replacing_folder
from realcustom_jax.common.pixels import to_signed
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Batch, Loader
from realcustom_jax.models.config import RealCustomConfig, from_mapping
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.batches import make_training_loader
from realcustom_jax.training.card import PUBLISHED_FILE, write_card
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.training.saved import Saved, read_saved
from realcustom_jax.training.start import open_data, open_start, starting_models
from realcustom_jax.weights.added import ADDED
from realcustom_jax.weights.components import read_config, weights_name
from realcustom_jax.weights.exports import write_added, write_published
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.parts import TOYBOX


def export(config: TrainConfig, ema: Any, data: Split, loader: Loader, folder: Path) -> None:
    """Write the model folder of a run. All processes must call it; the first one writes.

    Args:
      config: config of the run.
      ema: average of the trained parameters, in shards.
      data: training split.
      loader: loader of training batches.
      folder: the model folder.
    """
    trained = flatten(partition.to_host(ema))
    if jax.process_index() == 0:
        with replacing_folder(folder, "model folder") as temporary:
            write_model(config, trained, data, loader, temporary, config.export_dtype)
            # A finished run that was extended has written this folder before.
            shutil.rmtree(folder.resolve(), ignore_errors=True)
    # Writing takes minutes. Without this barrier the others would exit, wait for the first process in JAX's
    # shutdown, and stop the run when that wait times out.
    multihost_utils.sync_global_devices("export")


def write_model(
    config: TrainConfig,
    trained: Mapping[str, np.ndarray],
    data: Split | None,
    loader: Iterator[Batch] | None,
    folder: Path,
    dtype: str,
) -> None:
    """Write a model folder from trained parameters.

    Args:
      config: config of the run.
      trained: {"component/module/…/kernel": values}.
      data: training split; runs without `init_from` need it.
      loader: loader of training batches; the stage vae needs it.
      folder: the model folder.
      dtype: dtype of the weights.
    """
    # Frozen parameters are read once more, lazily: on the devices they may be rounded to `frozen_dtype`.
    pipe = open_start(config, data)
    pipe = pipe.replace(params=unflatten({**flatten(pipe.params), **trained}))
    if config.stage == "vae":
        assert loader is not None
        pipe = _measure_latents(pipe, loader)
    pipeline.save(pipe, folder, dtype)


def _measure_latents(pipe: Pipeline, loader: Iterator[Batch], batches: int = 8) -> Pipeline:
    """Set the VAE's scaling factor so that latents have unit variance, which the noise schedule assumes."""
    encode = jax.jit(
        lambda params, images: pipe.models.vae.apply({"params": params}, images, method="moments")
    )
    params = jax.device_put(jax.tree.map(np.asarray, pipe.params["vae"]))
    # Eight batches estimate one number well enough.
    means = [np.asarray(encode(params, to_signed(next(loader)["image"]))[0]) for _ in range(batches)]
    factor = float(1.0 / np.std(np.concatenate(means)))
    vae = dataclasses.replace(pipe.models.vae_config, scaling_factor=round(factor, 5))
    return pipe.replace(models=dataclasses.replace(pipe.models, vae_config=vae))


# An adapter folder of ours, one file with the published implementation's keys, or a whole diffusers folder.
FORMS = ("realcustom", "published", "diffusers")


class Choice(NamedTuple):
    """The parameters of a run to export.

    Attributes:
      step: step of the checkpoint; None for the newest.
      averaged: export the average over the steps (EMA) instead of the last values.
    """

    step: int | None = None
    averaged: bool = True


def export_checkpoint(workdir: Path, choice: Choice, form: str, folder: Path, dtype: str) -> tuple[int, str]:
    """Export the trained parameters of a checkpoint, with a model card.

    Args:
      workdir: workdir of the run, which may still be training.
      choice: which parameters.
      form: one of `FORMS`.
      folder: an existing, empty folder.
      dtype: dtype of the weights.

    Returns:
      the checkpoint's step, and a sentence about trained parameters that the form cannot hold, or "".

    Raises:
      UserError: the checkpoint does not exist, or the form cannot hold what the run trained.
    """
    file = left = ""
    if form == "diffusers":
        saved = _read(workdir, choice, "")
        _write_whole(saved, folder, dtype)
    else:
        saved = _read(workdir, choice, r"^unet/" if form == "published" else ADDED)
        config, base, added = _split(saved, workdir)
        if form == "published":
            file = PUBLISHED_FILE
            write_published(folder / file, config, base | added, dtype)
        else:
            # The folder form holds only what RealCustom adds, even if the base trained too.
            base, file = {}, weights_name("realcustom")
            write_added(folder, config, added, dtype)
            write_json(folder / "sampling.json", _sampling(saved.config.init_from))
        left = _left_out(saved, len(saved.params) - len(base) - len(added))
    write_card(folder, saved, choice.averaged, file, left)
    return saved.step, left


def _read(workdir: Path, choice: Choice, within: str) -> Saved:
    """Read the trained parameters whose paths match a regex."""
    return read_saved(workdir, *choice, lambda path: bool(re.search(within, path)))


def _split(saved: Saved, workdir: Path) -> tuple[RealCustomConfig, dict[str, Any], dict[str, Any]]:
    """Split the trained UNet into (adapter config, base parameters, added parameters), by paths in the UNet.

    The base parameters are {} unless all of them trained.

    Raises:
      UserError: the run trains nothing, or only a part, of what RealCustom adds.
    """
    config = saved.config
    unet = {path.removeprefix("unet/"): value for path, value in saved.params.items()}
    added = {path: value for path, value in unet.items() if re.search(ADDED, path)}
    if not added:
        raise UserError(
            f"the run in {str(workdir)!r} trains nothing that RealCustom adds to a model (its stage is "
            f"{config.stage}): there is no adapter; --form diffusers writes the whole model"
        )
    base = {path: value for path, value in unet.items() if path not in added}
    given = config.model.get("realcustom")
    # If everything that RealCustom adds has trained, the start model is not needed and may be gone.
    if base or ADDED not in config.trainable or not given:
        models = starting_models(config)
        realcustom = models.realcustom
        assert realcustom is not None
        required = flatten(models.component_shapes("unet")).keys()
        missing = sorted(path for path in required - added.keys() if re.search(ADDED, path))
        if missing:
            raise UserError(
                f"the run in {str(workdir)!r} trains only a part of what RealCustom adds, not {missing[0]}: "
                "--form diffusers writes the whole model"
            )
        base = base if required <= unet.keys() else {}
    else:
        realcustom = from_mapping(RealCustomConfig, given)
    return realcustom, base, added


def _sampling(init_from: str) -> dict[str, Any]:
    """Sampling options of the model that the run started from; {} if it has none or is gone."""
    if not init_from:
        return {}
    folder = (TOYBOX if init_from == "toybox" else Path(init_from)) / "realcustom"
    return read_config(folder, "sampling.json") if (folder / "sampling.json").is_file() else {}


def _left_out(saved: Saved, unwritten: int) -> str:
    """A sentence about trained parameters that are not in the result."""
    count = len(saved.others) + unwritten
    if not count:
        return ""
    return (
        f"The run also trained {count} parameters of the base model, which are not included; "
        "--form diffusers writes all."
    )


def _write_whole(saved: Saved, folder: Path, dtype: str) -> None:
    """Write a whole model folder from a checkpoint."""
    config, loader = saved.config, None
    vae = config.stage == "vae"  # its export measures latents, so it needs batches
    data = open_data(config.data, cache_dir()) if vae or not config.init_from else None
    if vae and data is not None:
        # Eight batches are not worth starting loader processes.
        config = config.replace(data=dataclasses.replace(config.data, workers=0))
        loader = make_training_loader(config, open_start(config, data), data, {})
        loader.set_state(saved.loader)
    write_model(config, saved.params, data, loader, folder, dtype)
    if loader:
        loader.close()
