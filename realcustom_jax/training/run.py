"""A run: one stage of training, from its config to the trained model folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.data.buckets import make_buckets
from realcustom_jax.data.encode import fingerprint, training_shapes
from realcustom_jax.data.encoded import open_encoded
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Loader, make_loader
from realcustom_jax.data.transforms import to_float
from realcustom_jax.errors import UserError
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.checkpoint import Checkpoints
from realcustom_jax.training.config import check_config, check_resume
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.examples import MakeExample
from realcustom_jax.training.logs import Logger, params_sha256
from realcustom_jax.training.losses import make_loss
from realcustom_jax.training.optimizer import make_optimizer, make_schedule
from realcustom_jax.training.start import make_folder, open_data, starting_pipeline
from realcustom_jax.training.state import TrainState, create_state, make_train_step


def train(config: ConfigDict, workdir: Path, cache: Path) -> str:
    """Run a stage to its last step, from the newest checkpoint in `workdir` where there is one.

    Args:
      config: as configs/tiny.py has it.
      workdir: for checkpoints/, metrics.jsonl and, at the end, model/.
      cache: where the toybox is drawn, if the config asks for it.

    Returns:
      the sha256 of the trained parameters (not of their average, which is what model/ holds).

    Raises:
      UserError: for a mistake in the config, or a workdir that is another run's.
    """
    # ---------------------------------------------------------------- config, data and model
    check_config(config)
    mesh = _make_mesh(config)
    make_folder(workdir, "workdir")
    checkpoints = Checkpoints(workdir, config.checkpoints_kept)
    first = checkpoints.latest_step() or 0
    if first:
        _announce(workdir, first, check_resume(config, checkpoints.config(first), first))
    data = open_data(config.data, cache)
    pipe = starting_pipeline(config, data)
    loader = make_training_loader(config, pipe, data)

    # ---------------------------------------------------------------- state, straight into its shards
    options = config.optimizer
    schedule = make_schedule(options.learning_rate, config.steps, options.warmup, options.end_fraction)
    optimizer = make_optimizer(schedule, options.weight_decay, options.b2, options.max_norm)
    trainable, frozen = partition.split_trainable(pipe.params, config.trainable, config.frozen)
    pipe = pipe.replace(params={})  # the host's copy goes as soon as the devices have theirs
    shapes = jax.eval_shape(lambda params: create_state(params, optimizer), trainable)
    state_shardings = partition.shardings(shapes, config.sharding, mesh)
    frozen_shardings = partition.shardings(frozen, config.sharding, mesh)
    frozen = partition.place(frozen, frozen_shardings)
    if first:
        state, loader_state = checkpoints.restore(first, jax.tree.map(_struct, shapes, state_shardings))
        loader.set_state(loader_state)
    else:
        create = jax.jit(lambda params: create_state(params, optimizer), out_shardings=state_shardings)
        state = create(partition.place(trainable, state_shardings.params))
    del trainable

    # ---------------------------------------------------------------- the loop
    loss = make_loss(config.stage, pipe.models, pipe.schedule, config.loss)
    batch_sharding = NamedSharding(mesh, partition.BATCH)
    step_fn = jax.jit(
        make_train_step(loss, optimizer, schedule, options.ema_decay, config.seed),
        in_shardings=(state_shardings, frozen_shardings, batch_sharding),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
    )
    logger = Logger(workdir, first, config.steps, config.batch_size)
    for step in range(first + 1, config.steps + 1):
        state, metrics = step_fn(state, frozen, _global_batch(next(loader), batch_sharding))
        logger.advance()
        if step % config.log_every == 0 or step == config.steps:
            logger.report(step, metrics)
        if step % config.checkpoint_every == 0 or step == config.steps:
            checkpoints.save(step, state, loader.get_state(), config.to_dict())

    # ---------------------------------------------------------------- the result
    checkpoints.close()
    digest = params_sha256(partition.to_host(state.params))
    logger.write({"step": config.steps, "sha256": digest})
    logger.close()
    _export(config, pipe, state, frozen, loader, workdir / "model")
    loader.close()
    return digest


def _make_mesh(config: ConfigDict) -> Mesh:
    mesh = partition.make_mesh(**config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shards:
        raise UserError(f"batch_size {config.batch_size} cannot be divided among {shards} devices")
    return mesh


def _announce(workdir: Path, step: int, differences: str) -> None:
    if jax.process_index() == 0:
        print(f"resuming from step {step} in {workdir / 'checkpoints'}", flush=True)
        if differences:
            print(f"the config differs from the checkpoint's: {differences}", flush=True)


def make_training_loader(config: ConfigDict, pipe: Pipeline, data: Split) -> Loader:
    """This process's part of the batches that a run of the config trains on.

    Raises:
      UserError: the config's `data` asks for buckets or stored latents that data or model do not allow.
    """
    options = config.data
    customize = config.stage == "customize"
    diffusion = config.stage in ("base", "customize")
    transform = MakeExample(
        pipe.tokenizers,
        pipe.models.vae_config.downscale * pipe.models.unet_config.sample_size,
        pipe.models.image_configs[0].image_size if customize else None,
        pipe.models.high_res,
        config.batch_size,
        Curriculum(**config.curriculum),
        drop_text=options.drop_text if diffusion else 0.0,
        drop_image=options.drop_image if customize else 0.0,
        drop_both=options.drop_both if diffusion else 0.0,
    )
    buckets, source = None, data
    if options.get("buckets") or options.get("encoded"):
        shapes = training_shapes(
            pipe.models,
            options.get("buckets", False),
            options.get("bucket_step", 64),
            options.get("bucket_max_aspect", 2.0),
        )
        if options.get("buckets"):
            buckets = make_buckets(data.sizes(), shapes)
        if options.get("encoded"):
            source = open_encoded(data, fingerprint(pipe.params["vae"]), shapes, with_image=customize)
    return make_loader(
        source,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=options.workers,
        prefetch=options.prefetch,
        buckets=buckets,
    )


def _struct(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _global_batch(local: Mapping[str, np.ndarray], sharding: NamedSharding) -> dict[str, jax.Array]:
    # Process p has the p-th part of the batch. This assumes that all processes have as many devices, that
    # the mesh holds those of a process next to each other, as jax.devices() lists them, and that the "tensor"
    # axis lies within a process: processes that it joins would need equal parts.
    return {name: jax.make_array_from_process_local_data(sharding, x) for name, x in local.items()}


def _export(
    config: ConfigDict, pipe: Pipeline, state: TrainState, frozen: Any, loader: Loader, folder: Path
) -> None:
    """Gather all parameters, in all processes, and write the model folder, in the first."""
    params = partition.to_host(partition.merge(state.ema, frozen))
    if jax.process_index():
        return
    pipe = pipe.replace(params=params)
    if config.stage == "vae":
        pipe = _measure_latents(pipe, loader)
    pipeline.save(pipe, folder, config.export_dtype)


def _measure_latents(pipe: Pipeline, loader: Loader, batches: int = 8) -> Pipeline:
    """Set the VAE's scaling factor so that latents have unit variance, as diffusion expects them."""
    encode = jax.jit(
        lambda params, images: pipe.models.vae.apply({"params": params}, images, method="moments")
    )
    params = jax.device_put(pipe.params["vae"])
    means = [np.asarray(encode(params, to_float(next(loader)["image"]))[0]) for _ in range(batches)]
    factor = float(1.0 / np.std(np.concatenate(means)))
    vae = dataclasses.replace(pipe.models.vae_config, scaling_factor=round(factor, 5))
    return pipe.replace(models=dataclasses.replace(pipe.models, vae_config=vae))
