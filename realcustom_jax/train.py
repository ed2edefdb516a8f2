"""Train one stage: `python -m realcustom_jax.train --config configs/tiny.py:STAGE --workdir DIR`.

Writes DIR/checkpoints (state, place in the data, config), DIR/metrics.jsonl and, at the end, DIR/model, a
model folder that `realcustom_jax.load` and the next stage read. Run again with the same DIR, it goes on from
the newest checkpoint. Every option of the config is a flag: --config.steps=100,
--config.optimizer.learning_rate=1e-3.
"""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding
from ml_collections import ConfigDict, config_flags

from realcustom_jax import pipeline
from realcustom_jax.cli import cache_dir, parse_flags, run_command
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Loader, make_loader
from realcustom_jax.errors import UserError
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.checkpoint import Checkpoints
from realcustom_jax.training.curriculum import Curriculum
from realcustom_jax.training.examples import MakeExample
from realcustom_jax.training.logs import Logger, params_sha256
from realcustom_jax.training.losses import make_loss
from realcustom_jax.training.optimizer import make_optimizer, make_schedule
from realcustom_jax.training.start import open_data, starting_pipeline
from realcustom_jax.training.state import create_state, make_train_step

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :STAGE for the stage.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for checkpoints, metrics and the trained model.")


def train(config: ConfigDict, workdir: Path) -> str:
    """Run a stage to its last step; returns the sha256 of the trained parameters (not their average)."""
    # ---------------------------------------------------------------- data and model
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the workdir {str(workdir)!r} cannot be made: {error.strerror}") from None
    mesh = partition.make_mesh(**config.mesh)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.batch_size % shards:
        raise UserError(f"batch_size {config.batch_size} cannot be divided among {shards} devices")
    data = open_data(config.data.path, config.data.split, config.data.toybox_examples, cache_dir())
    pipe = starting_pipeline(config, data)
    loader = _make_loader(config, pipe, data)

    # ---------------------------------------------------------------- state, in its shards from the start
    options = config.optimizer
    schedule = make_schedule(options.learning_rate, config.steps, options.warmup, options.end_fraction)
    optimizer = make_optimizer(schedule, options.weight_decay, options.b2, options.max_norm)
    trainable, frozen = partition.split_trainable(pipe.params, config.trainable, config.frozen)
    shapes = jax.eval_shape(lambda params: create_state(params, optimizer), trainable)
    state_shardings = partition.shardings(shapes, config.sharding, mesh)
    frozen_shardings = partition.shardings(frozen, config.sharding, mesh)
    frozen = jax.device_put(frozen, frozen_shardings)

    # ---------------------------------------------------------------- the newest checkpoint, or step 0
    checkpoints = Checkpoints(workdir, config.checkpoints_kept)
    first = checkpoints.latest_step() or 0
    if first:
        like = jax.tree.map(_with_sharding, shapes, state_shardings)
        state, loader_state = checkpoints.restore(first, like)
        loader.set_state(loader_state)
        print(f"resuming from step {first} in {workdir / 'checkpoints'}", flush=True)
    else:
        params = jax.device_put(trainable, state_shardings.params)
        state = jax.jit(lambda p: create_state(p, optimizer), out_shardings=state_shardings)(params)

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
        batch = jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(batch_sharding, x), next(loader)
        )
        state, metrics = step_fn(state, frozen, batch)
        logger.advance()
        if step % config.log_every == 0 or step == config.steps:
            logger.report(step, metrics)
        if step % config.checkpoint_every == 0 or step == config.steps:
            checkpoints.save(step, state, loader.get_state(), config.to_dict())

    # ---------------------------------------------------------------- the result
    checkpoints.close()
    digest = params_sha256(jax.device_get(state.params))
    logger.write({"step": config.steps, "sha256": digest})
    logger.close()
    pipe = pipe.replace(params=jax.device_get(partition.merge(state.ema, frozen)))
    if config.stage == "vae":
        pipe = _measure_latents(pipe, loader)
    pipeline.save(pipe, workdir / "model", config.export_dtype)
    loader.close()
    return digest


def _make_loader(config: ConfigDict, pipe: Pipeline, data: Split) -> Loader:
    options = config.data
    customize = config.stage == "customize"
    diffusion = config.stage in ("base", "customize")
    transform = MakeExample(
        pipe.tokenizer,
        pipe.models.vae_config.sample_size,
        pipe.models.image_config.image_size if customize else None,
        config.batch_size,
        Curriculum(**config.curriculum),
        drop_text=options.drop_text if diffusion else 0.0,
        drop_image=options.drop_image if customize else 0.0,
        drop_both=options.drop_both if diffusion else 0.0,
    )
    return make_loader(
        data,
        transform,
        batch_size=config.batch_size,
        seed=config.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=options.workers,
        prefetch=options.prefetch,
    )


def _with_sharding(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


def _measure_latents(pipe: Pipeline, loader: Loader, batches: int = 8) -> Pipeline:
    """Set the VAE's scaling factor so that latents have unit variance, as diffusion expects them."""
    encode = jax.jit(
        lambda images: pipe.models.vae.apply({"params": pipe.params["vae"]}, images, method="moments")
    )
    means = [encode(jnp.asarray(next(loader)["image"], jnp.float32) / 127.5 - 1.0)[0] for _ in range(batches)]
    factor = float(1.0 / np.std(np.concatenate(means)))
    vae = dataclasses.replace(pipe.models.vae_config, scaling_factor=round(factor, 5))
    return pipe.replace(models=dataclasses.replace(pipe.models, vae_config=vae))


def main() -> None:
    parse_flags(__doc__)
    if not _WORKDIR.value or _CONFIG.value is None:
        raise UserError("train needs --config FILE and --workdir DIR, see --help")
    digest = train(_CONFIG.value, Path(_WORKDIR.value))
    print(f"sha256 {digest}", flush=True)


if __name__ == "__main__":
    run_command(main)
