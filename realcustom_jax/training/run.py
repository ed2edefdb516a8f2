"""A run: one stage of training, from its config to the trained model folder."""

import dataclasses
import functools
import signal
import threading
from collections.abc import Callable
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
from realcustom_jax.training.step import FiniteWatch, Plan, TrainState, all_finite, make_plan
from realcustom_jax.weights.digest import params_sha256
from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.lazy import Place


def train(
    values: ConfigDict, workdir: Path, cache: Path, window: tuple[int, int] | None = None
) -> str | None:
    """Run a stage to its last step, from the newest checkpoint in `workdir` where there is one.

    Args:
      values: the config, as configs/tiny.py has it.
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
    config = read_config(values)
    check_start(config)
    mesh = partition.make_mesh(**vars(config.mesh))
    partition.check_batch(config.batch_size, config.accumulate, mesh)
    make_folder(workdir, "workdir")
    checkpoints = Checkpoints(workdir, config.checkpoints_kept, config.checkpoints_kept_every)
    newest = checkpoints.latest_step() or 0
    differences = check_resume(config, checkpoints.config(newest), newest) if newest else ""
    data = open_data(config.data, cache)
    place = partition.placer(config.trainable, DTYPES[config.frozen_dtype], config.sharding, mesh)
    pipe, loader = _model_and_loader(config, data, place)

    # ---------------------------------------------------------------- state, straight into its shards
    models = dataclasses.replace(
        pipe.models,
        dtype=DTYPES[config.compute_dtype],
        remat=config.remat,
        flash=flash_attention(mesh),
        scan=config.scan,
    )
    every = config.samples.every
    grid = SampleGrid(config, pipe.replace(models=models, params={}), mesh) if every else None
    plan = make_plan(config, models, pipe.schedule, pipe.params, mesh)
    trainable, frozen = split_params(config, pipe.params)
    del pipe
    first, restored = 0, checkpoints.restore_newest(plan.state)
    if restored:
        first, state = restored.step, restored.state
        loader.set_state(restored.loader)
        _say(f"resuming from step {first} in {workdir / 'checkpoints'}")
        if differences:
            _say(f"the config differs from the checkpoint's: {differences}")
    else:
        state = plan.create(trainable)
    del trainable, restored  # what trains was copied into the state

    # ---------------------------------------------------------------- the loop
    logger, profile = Logger(workdir, first, config.steps), Profile(window, workdir / "profile")

    def save(step: int, state: TrainState) -> None:
        if not all_finite((state.params, state.ema)):  # the checkpoints before it are worth more
            _say(f"the parameters are not finite after step {step}: no checkpoint is written")
            return
        checkpoints.save(step, state, loader.get_state(), config.to_dict())

    def show(step: int, state: TrainState, frozen: Any, meter: Meter) -> None:
        if grid and (step % every == 0 or step == config.steps):
            with meter.aside(state.step):
                logger.picture(step, "samples", grid(state.ema, frozen))

    step, state = _loop(config, plan, first, state, frozen, loader, logger, profile, save, show)
    checkpoints.close()
    profile.close()
    if step < config.steps:
        logger.close()
        loader.close()
        _say(f"stopped by SIGTERM after step {step}, which is saved: start again to go on")
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
    del state, frozen  # the model is written where they were
    export(config, ema, data, loader, workdir / "model")
    loader.close()
    return digest


def _model_and_loader(config: TrainConfig, data: Split, put: Place) -> tuple[Pipeline, Loader]:
    """The model that the run begins with, its parameters where `put` puts them, and the loader."""
    encoders: dict[str, np.ndarray] = {}
    stored, idle = stored_components(config), idle_components(config)

    def place(path: str, value: np.ndarray) -> Any:
        component = path.split("/")[0]
        if component in stored:
            encoders[path] = value  # what is stored must be of these, before they are rounded
        return value if component in idle else put(path, value)

    pipe = starting_pipeline(config, data, place)
    check_stored(config, flatten(pipe.params))
    return pipe, make_training_loader(config, pipe, data, unflatten(encoders))


def _loop(
    config: TrainConfig,
    plan: Plan,
    first: int,
    state: TrainState,
    frozen: Any,
    loader: Loader,
    logger: Logger,
    profile: Profile,
    save: Callable[[int, TrainState], None],
    show: Callable[[int, TrainState, Any, Meter], None],
) -> tuple[int, TrainState]:
    """The steps after `first` until the last one or SIGTERM; gives the last that was done, and its state."""
    step, meter = first, Meter(config.batch_size)
    watch = FiniteWatch(config.optimizer.most_skipped)
    with Preemption() as preemption:
        for step in range(first + 1, config.steps + 1):
            with meter.waiting():
                local = next(loader)
            batch = global_batch(local, config.batch_size, plan.batch)
            profile.before(step)
            state, metrics = plan.step(state, frozen, batch)
            profile.after(step, metrics)
            if step == first + 1:
                meter.count(functools.partial(plan.flops, batch))
            meter.step()
            logger.advance()
            watch.look(step, metrics["skipped_in_a_row"])
            ending = preemption.reached(step) or step == config.steps
            if step % config.log_every == 0 or step == config.steps:
                logger.report(step, metrics, meter)
            if step % config.checkpoint_every == 0 or ending:
                watch.flush()
                save(step, state)
            show(step, state, frozen, meter)
            if ending:
                break
    return step, state


class Preemption:
    """While entered, SIGTERM does not end the process, but makes `reached` true: time to save and leave.

    With several processes JAX's own service hears the signal of any of them, and all reach the same step.
    """

    def __init__(self):
        self._noticed = threading.Event()
        self._previous: Any = None

    def __enter__(self) -> "Preemption":
        # Python lets only the main thread handle signals; elsewhere the process's own ways stay.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, lambda *_: self._noticed.set())
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def reached(self, step: int) -> bool:
        """Whether to save after this step and end; to be asked after every step, in all processes."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._noticed.is_set()


def _say(sentence: str) -> None:
    if jax.process_index() == 0:
        print(sentence, flush=True)
