"""The result of a run: its model folder."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from realcustom_jax import pipeline
from realcustom_jax.common.folders import replacing_folder
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Batch, Loader
from realcustom_jax.inputs.transforms import to_float
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.training.start import open_start
from realcustom_jax.weights.keys import flatten, unflatten


def export(config: TrainConfig, ema: Any, data: Split, loader: Loader, folder: Path) -> None:
    """Gather what was trained, in all processes, and write the model folder, in the first.

    Args:
      config: the run's.
      ema: the average of the trained parameters, in its shards.
      data: the training split.
      loader: of its batches.
      folder: to write.
    """
    trained = flatten(partition.to_host(ema))
    if jax.process_index() == 0:
        with replacing_folder(folder, "model folder") as half:
            write_model(config, trained, data, loader, half, config.export_dtype)
            shutil.rmtree(folder.resolve(), ignore_errors=True)  # what the run wrote when it ended before
    multihost_utils.sync_global_devices("export")  # at their end the others would wait for it, but not long


def write_model(
    config: TrainConfig,
    trained: Mapping[str, np.ndarray],
    data: Split | None,
    loader: Iterator[Batch] | None,
    folder: Path,
    dtype: str,
) -> None:
    """Write the model folder of a run.

    What did not train comes from where the run began once more, as on the devices it may be rounded. It is
    copied tensor by tensor.

    Args:
      config: the run's.
      trained: {"component/module/…/kernel": values}.
      data: the training split; needed by runs without `init_from`.
      loader: of its batches; needed by the stage vae.
      folder: to write.
      dtype: of the weights.
    """
    pipe = open_start(config, data)
    pipe = pipe.replace(params=unflatten({**flatten(pipe.params), **trained}))
    if config.stage == "vae":
        pipe = _measure_latents(pipe, loader)
    pipeline.save(pipe, folder, dtype)


def _measure_latents(pipe: Pipeline, loader: Iterator[Batch], batches: int = 8) -> Pipeline:
    """Set the VAE's scaling factor so that latents have unit variance, as diffusion expects them."""
    encode = jax.jit(
        lambda params, images: pipe.models.vae.apply({"params": params}, images, method="moments")
    )
    params = jax.device_put(jax.tree.map(np.asarray, pipe.params["vae"]))
    means = [np.asarray(encode(params, to_float(next(loader)["image"]))[0]) for _ in range(batches)]
    factor = float(1.0 / np.std(np.concatenate(means)))
    vae = dataclasses.replace(pipe.models.vae_config, scaling_factor=round(factor, 5))
    return pipe.replace(models=dataclasses.replace(pipe.models, vae_config=vae))
