"""A run: one stage of training, from its config to the trained model folder."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from realcustom_jax import pipeline
from realcustom_jax.data.buckets import make_buckets
from realcustom_jax.data.encode import fingerprint, training_shapes
from realcustom_jax.data.encoded import open_encoded
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Loader, make_loader
from realcustom_jax.data.transforms import to_float
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.checkpoint import Checkpoints
from realcustom_jax.training.config import DTYPES, check_config, check_resume
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.examples import MakeExample
from realcustom_jax.training.finite import FiniteWatch
from realcustom_jax.training.logs import Logger, params_sha256
from realcustom_jax.training.meter import Meter
from realcustom_jax.training.plan import make_plan
from realcustom_jax.training.preemption import Preemption
from realcustom_jax.training.profile import Profile
from realcustom_jax.training.start import make_folder, open_data, starting_pipeline
from realcustom_jax.training.state import TrainState
from realcustom_jax.weights.keys import unflatten


def train(
    config: ConfigDict, workdir: Path, cache: Path, window: tuple[int, int] | None = None
) -> str | None:
    """Run a stage to its last step, from the newest checkpoint in `workdir` where there is one.

    Args:
      config: as configs/tiny.py has it.
      workdir: for checkpoints/, metrics.jsonl and, at the end, model/.
      cache: where the toybox is drawn, if the config asks for it.
      window: first and last step to profile, into `workdir`/profile.

    Returns:
      the sha256 of the trained parameters (not of their average, which is what model/ holds); None when
      SIGTERM ended the run before its last step, with a checkpoint of where it was.

    Raises:
      UserError: for a mistake in the config, a workdir that is another run's or cannot be written to, or
        too many updates in a row that are not finite.
    """
    # ---------------------------------------------------------------- config, data and model
    check_config(config)
    mesh = _make_mesh(config)
    make_folder(workdir, "workdir")
    checkpoints = Checkpoints(workdir, config.checkpoints_kept, config.checkpoints_kept_every)
    newest = checkpoints.latest_step() or 0
    differences = check_resume(config, checkpoints.config(newest), newest) if newest else ""
    data = open_data(config.data, cache)
    put = partition.placer(config.trainable, DTYPES[config.frozen_dtype], config.sharding, mesh)
    vae: dict[str, np.ndarray] = {}

    def place(path: str, value: np.ndarray) -> jax.Array:
        if config.data.get("encoded") and path.startswith("vae/"):
            vae[path.removeprefix("vae/")] = value  # what stored latents must be of, before it is rounded
        return put(path, value)

    pipe = starting_pipeline(config, data, place)
    models = dataclasses.replace(pipe.models, dtype=DTYPES[config.compute_dtype], remat=config.remat)
    loader = make_training_loader(config, pipe, data, unflatten(vae))
    vae.clear()

    # ---------------------------------------------------------------- state, straight into its shards
    plan = make_plan(config, models, pipe.schedule, pipe.params, mesh)
    trainable, frozen = partition.split_trainable(pipe.params, config.trainable, config.frozen)
    pipe = pipe.replace(params={})  # what trains is copied into the state, and then goes
    first, restored = 0, checkpoints.restore_newest(plan.state)
    if restored:
        first, state = restored.step, restored.state
        loader.set_state(restored.loader)
        _announce(workdir, first, differences)
    else:
        state = plan.create(trainable)
    del trainable

    # ---------------------------------------------------------------- the loop
    logger, profile = Logger(workdir, first, config.steps), Profile(window, workdir / "profile")
    meter = Meter(config.batch_size)
    watch = FiniteWatch(config.optimizer.most_skipped)
    with Preemption() as preemption:
        for step in range(first + 1, config.steps + 1):
            with meter.waiting():
                local = next(loader)
            batch = _global_batch(local, config.batch_size, plan.batch)
            profile.before(step)
            state, metrics = plan.step(state, frozen, batch)
            profile.after(step, metrics)
            if step == first + 1:
                meter.count(functools.partial(plan.flops, batch))
            meter.step()
            logger.advance()
            watch.look(step, metrics["skipped_in_a_row"])
            last, preempted = step == config.steps, preemption.reached(step)
            if step % config.log_every == 0 or last:
                logger.report(step, metrics, meter)
            if step % config.checkpoint_every == 0 or last or preempted:
                watch.flush()
                checkpoints.save(step, state, loader.get_state(), config.to_dict())
            if preempted and not last:
                checkpoints.close()
                profile.close()
                logger.close()
                loader.close()
                _say(f"stopped by SIGTERM after step {step}, which is saved: start again to go on")
                return None

    # ---------------------------------------------------------------- the result
    checkpoints.close()
    profile.close()
    digest = params_sha256(partition.to_host(state.params))
    logger.write({"step": config.steps, "sha256": digest})
    logger.close()
    _export(config, pipe, state, frozen, loader, workdir / "model")
    loader.close()
    return digest


def _make_mesh(config: ConfigDict) -> Mesh:
    mesh = partition.make_mesh(**config.mesh)
    partition.check_batch(config.batch_size, config.accumulate, mesh)
    return mesh


def _announce(workdir: Path, step: int, differences: str) -> None:
    _say(f"resuming from step {step} in {workdir / 'checkpoints'}")
    if differences:
        _say(f"the config differs from the checkpoint's: {differences}")


def _say(sentence: str) -> None:
    if jax.process_index() == 0:
        print(sentence, flush=True)


def make_training_loader(config: ConfigDict, pipe: Pipeline, data: Split, vae: Any) -> Loader:
    """This process's part of the batches that a run of the config trains on.

    Args:
      config: the run's.
      pipe: its model; parameters are not needed.
      data: its training split.
      vae: parameters of the VAE as they were loaded, which stored latents must be of.

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
        text_only=options.text_only if customize else 0.0,
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
            source = open_encoded(data, fingerprint(vae), shapes, with_image=customize)
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


def _global_batch(
    local: Mapping[str, np.ndarray], size: int, sharding: NamedSharding
) -> dict[str, jax.Array]:
    # Each process has its own part of the batch. With the whole size given, JAX refuses a mesh whose "tensor"
    # axis joins processes: those would need equal parts.
    return {
        name: jax.make_array_from_process_local_data(sharding, x, (size, *x.shape[1:]))
        for name, x in local.items()
    }


def _export(
    config: ConfigDict, pipe: Pipeline, state: TrainState, frozen: Any, loader: Loader, folder: Path
) -> None:
    """Gather all parameters, in all processes, and write the model folder, in the first."""
    params = partition.to_host(partition.merge(state.ema, frozen))
    if jax.process_index() == 0:
        pipe = pipe.replace(params=params)
        if config.stage == "vae":
            pipe = _measure_latents(pipe, loader)
        pipeline.save(pipe, folder, config.export_dtype)
    multihost_utils.sync_global_devices("export")  # else the others would wait for it at their end, not long


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
