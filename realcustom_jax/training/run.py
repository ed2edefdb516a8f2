"""A training run: one stage, from its config to the trained model folder."""

import dataclasses
import functools
import signal
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.files import make_folder
from realcustom_jax.data.image_text import Split
from realcustom_jax.data.loader import Loader
from realcustom_jax.models.flash import flash_attention
from realcustom_jax.pipeline import Pipeline
from realcustom_jax.training import partition
from realcustom_jax.training.batches import (
    check_stored,
    global_batch,
    idle_components,
    make_training_loader,
    split_params,
    stored_components,
)
from realcustom_jax.training.checkpoint import Checkpoints
from realcustom_jax.training.config import DTYPES, TrainConfig, check_resume, read_config
from realcustom_jax.training.export import export
from realcustom_jax.training.logs import Logger, Meter, Profile
from realcustom_jax.training.samples import SampleGrid
from realcustom_jax.training.start import check_start, open_data, starting_pipeline
from realcustom_jax.training.step import FiniteWatch, TrainState, all_finite, make_plan
from realcustom_jax.weights.digest import params_sha256
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.lazy import Place


def train(
    values: ConfigDict, workdir: Path, cache: Path, window: tuple[int, int] | None = None
) -> str | None:
    """Run one stage of training to its last step, or resume it from the newest checkpoint in `workdir`.

    Args:
      values: the config, in the form of configs/tiny.py.
      workdir: folder for checkpoints/, metrics.jsonl and, at the end, model/.
      cache: folder for the toybox data set, which is drawn only if the config asks for it.
      window: first and last step to profile, into `workdir`/profile.

    Returns:
      the sha256 of the trained parameters (not of their average, which model/ holds), or None when SIGTERM
      stopped the run early, after a checkpoint was saved.

    Raises:
      UserError: for a mistake in the config, for a workdir that belongs to another run or is not writable,
        or when too many consecutive updates were not finite.
    """
    # ---------------------------------------------------------------- config
    # Everything that can fail without data or weights is checked first: at full size, loading takes minutes.
    config = read_config(values)
    check_start(config)
    mesh = partition.make_mesh(**vars(config.mesh))
    partition.check_batch(config.batch_size, config.accumulate, mesh)
    make_folder(workdir, "workdir")
    checkpoints = Checkpoints(workdir, config.checkpoints_kept, config.checkpoints_kept_every)
    newest = checkpoints.latest_step() or 0
    differences = check_resume(config, checkpoints.config(newest), newest) if newest else ""

    # ---------------------------------------------------------------- data and model
    data = open_data(config.data, cache)
    # Each parameter goes from its file straight into its shards, so no host holds the whole model.
    place = partition.placer(config.trainable, DTYPES[config.frozen_dtype], config.sharding, mesh)
    pipe, loader = _model_and_loader(config, data, place)
    models = dataclasses.replace(
        pipe.models,
        dtype=DTYPES[config.compute_dtype],
        remat=config.remat,
        flash=flash_attention(mesh),
        scan=config.scan,
    )

    # ---------------------------------------------------------------- step and state
    every = config.samples.every
    grid = SampleGrid(config, pipe.replace(models=models, params={}), mesh) if every else None
    plan = make_plan(config, models, pipe.schedule, pipe.params, mesh)
    trainable, frozen = split_params(config, pipe.params)
    del pipe  # it would keep alive parameters that the devices need not hold
    first, restored = 0, checkpoints.restore_newest(plan.state)
    if restored:
        first, state = restored.step, restored.state
        loader.set_state(restored.loader)
        _say(f"resuming from step {first} in {workdir / 'checkpoints'}")
        if differences:
            _say(f"the config differs from the checkpoint's: {differences}")
    else:
        state = plan.create(trainable)
    del trainable, restored  # the state holds copies; a second set of parameters would cost device memory

    # ---------------------------------------------------------------- the loop
    step, meter = first, Meter(config.batch_size)
    logger, profile = Logger(workdir, first, config.steps), Profile(window, workdir / "profile")
    watch = FiniteWatch(config.optimizer.most_skipped)
    with Preemption() as preemption:
        for step in range(first + 1, config.steps + 1):
            with meter.waiting():
                local = next(loader)
            batch = global_batch(local, config.batch_size, plan.batch)

            # JAX dispatches the step and returns at once, so the host prepares the next batch meanwhile.
            profile.before(step)
            state, metrics = plan.step(state, frozen, batch)
            profile.after(step, metrics)
            if step == first + 1:  # now the step is compiled, so counting its operations is cheap
                meter.count(functools.partial(plan.flops, batch))
            meter.step()
            logger.advance()
            watch.look(step, metrics["skipped_in_a_row"])

            # All processes must agree on the last step, so every one asks, after every step.
            ending = preemption.reached(step) or step == config.steps
            if step % config.log_every == 0 or step == config.steps:
                logger.report(step, metrics, meter)
            if step % config.checkpoint_every == 0 or ending:
                watch.flush()  # this step's result too must be checked before it is saved
                _save(checkpoints, step, state, loader, config)
            if grid and (step % every == 0 or step == config.steps):
                with meter.aside(state.step):
                    logger.picture(step, "samples", grid(state.ema, frozen))
            if ending:
                break
    local = batch = None  # free the last batch: the export below needs the memory
    checkpoints.close()
    profile.close()
    if step < config.steps:
        logger.close()
        loader.close()
        _say(f"stopped by SIGTERM after step {step}, which is saved: run the same command again to resume")
        return None

    # ---------------------------------------------------------------- the result
    if not all_finite((state.params, state.ema)):
        raise UserError(
            f"the parameters are not finite after the last step, {step}: no model is written, earlier "
            "checkpoints are kept; a smaller config.optimizer.learning_rate may help"
        )
    digest = params_sha256(partition.to_host(state.params))
    logger.write({"step": config.steps, "sha256": digest})
    logger.close()
    ema = state.ema
    del state, frozen  # frees device memory: the export gathers the average there
    export(config, ema, data, loader, workdir / "model")
    loader.close()
    return digest


def _model_and_loader(config: TrainConfig, data: Split, put: Place) -> tuple[Pipeline, Loader]:
    """The starting model, each parameter placed by `put`, and the loader of training batches."""
    encoders: dict[str, np.ndarray] = {}
    stored, idle = stored_components(config), idle_components(config)

    def place(path: str, value: np.ndarray) -> Any:
        component = path.split("/")[0]
        if component in stored:
            # `put` may round to `frozen_dtype`, and stored features are identified by the exact values.
            encoders[path] = value
        return value if component in idle else put(path, value)

    pipe = starting_pipeline(config, data, place)
    check_stored(config, flatten(pipe.params))
    return pipe, make_training_loader(config, pipe, data, unflatten(encoders))


def _save(
    checkpoints: Checkpoints, step: int, state: TrainState, loader: Loader, config: TrainConfig
) -> None:
    """Save a checkpoint, unless the parameters are not finite."""
    if not all_finite((state.params, state.ema)):
        # Only the newest checkpoints are kept, and this one would push out a usable one.
        _say(f"the parameters are not finite after step {step}: no checkpoint is written")
        return
    checkpoints.save(step, state, loader.get_state(), config.to_dict())


class Preemption:
    """Context manager in which SIGTERM does not end the process but makes `reached` return True.

    With several processes, JAX's preemption service receives the signal of any process and makes all
    processes stop after the same step.
    """

    def __init__(self):
        self._noticed = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        # Python allows signal handlers only in the main thread; elsewhere SIGTERM keeps its usual effect.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save and stop after this step. Call it after every step, in all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed.is_set()


def _say(sentence: str) -> None:
    """Print once, whatever the number of processes."""
    if jax.process_index() == 0:
        print(sentence, flush=True)
