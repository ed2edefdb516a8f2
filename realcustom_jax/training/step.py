"""The training step: state, update, skipped updates, and all of it compiled with shardings."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.sharding import Mesh, NamedSharding

from realcustom_jax.common.errors import UserError
from realcustom_jax.common.kernel_cost import kernel_cost
from realcustom_jax.common.precision import compiler_options
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.family import Models
from realcustom_jax.training import partition
from realcustom_jax.training.batches import split_params
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.training.losses import Batch, Loss, Metrics, make_loss
from realcustom_jax.training.optimizer import make_optimizer, make_schedule
from realcustom_jax.training.partition import merge


def choose(finite: Array, new: Any, old: Any) -> Any:
    """The tree `new` where a step was finite, else `old`."""
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def all_finite(tree: Any) -> bool:
    """Whether all numbers are finite, in their shards; all processes must call it.

    A program for each shape, of which a model has few.
    """
    return all(jax.device_get([_is_finite(leaf) for leaf in jax.tree.leaves(tree)]))


@jax.jit
def _is_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


class FiniteWatch:
    """Ends a run after `limit` skipped updates in a row.

    It looks at the step before the one that was just dispatched, so the device never waits for the host.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._pending: tuple[int, Array] | None = None

    def look(self, step: int, skipped_in_a_row: Array) -> None:
        """To be called after every step with its metric.

        Raises:
          UserError: that names the first of the skipped steps.
        """
        self.flush()
        self._pending = step, skipped_in_a_row

    def flush(self) -> None:
        """Look at the last step too, before what it gave is kept. Raises as `look`."""
        if self._pending is None:
            return
        step, count = self._pending[0], int(self._pending[1])
        self._pending = None
        if count >= self._limit:
            raise UserError(
                f"the loss or its gradient was not finite in {count} steps in a row, from step "
                f"{step - count + 1} to {step}; earlier checkpoints are kept"
            )


@flax.struct.dataclass
class TrainState:
    """What a step changes; checkpoints hold exactly this.

    Attributes:
      step: () int32, updates done.
      params: the trainable part of the parameters, as a nested dict.
      opt_state: the optimizer's.
      ema: exponential moving average of `params`.
      skipped, skipped_in_a_row: () int32, updates that were not finite: of all, and the newest on end.
    """

    step: Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: Array
    skipped_in_a_row: Array


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A fresh state; jit it with `out_shardings` to create it in its shards."""
    copy = jax.tree.map(jnp.copy, params)  # donated buffers must not be shared
    zero = jnp.zeros((), jnp.int32)
    return TrainState(zero, params, optimizer.init(params), copy, zero, zero)


def make_train_step(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    ema_decay: float,
    seed: int,
    accumulate: int = 1,
) -> Callable[[TrainState, Any, Batch], tuple[TrainState, Metrics]]:
    """The pure step (state, frozen parameters, batch) → (state, metrics).

    Random numbers are a function of (seed, step), so a resumed run repeats them, on any number of devices.
    The average's decay starts low, min(decay, (1+step)/(10+step)): early averages follow quickly. Where the
    loss or the gradient is not finite, nothing changes but the counts.

    With `accumulate` above 1 the batch is worked off in so many parts, whose mean gradient is the step's:
    memory for activations shrinks by that factor.
    """

    def step(state: TrainState, frozen: Any, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(params: Any, part: Batch, key: Array) -> tuple[Array, Metrics]:
            return loss(merge(params, frozen), part, key)

        differentiate = jax.value_and_grad(objective, has_aux=True)
        if accumulate == 1:
            (value, metrics), gradients = differentiate(state.params, batch, key)
        else:
            (value, metrics), gradients = _accumulated(differentiate, state.params, batch, key, accumulate)
        with jax.numpy_dtype_promotion("standard"):  # optax computes floats from integer counts
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            # The optimizer counts only the updates that it makes.
            rate = schedule(state.step - state.skipped)
        params = optax.apply_updates(state.params, updates)
        norm = optax.global_norm(gradients)
        done = state.step.astype(jnp.float32)
        decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
        ema = jax.tree.map(functools.partial(_moving_average, decay), state.ema, params)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt_state, ema = choose(
            finite, (params, opt_state, ema), (state.params, state.opt_state, state.ema)
        )
        skipped = state.skipped + (~finite).astype(jnp.int32)
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": rate,
            "skipped": skipped,
            "skipped_in_a_row": in_a_row,
            **metrics,
        }
        return TrainState(state.step + 1, params, opt_state, ema, skipped, in_a_row), metrics

    return step


def _moving_average(decay: Array, old: Array, new: Array) -> Array:
    return decay.astype(old.dtype) * old + (1.0 - decay).astype(old.dtype) * new


def _accumulated(differentiate: Callable[..., Any], params: Any, batch: Batch, key: Array, parts: int) -> Any:
    """The mean over the parts of a batch of what `differentiate(params, part, key)` gives."""

    def split(x: Array) -> Array:
        # Every part takes each parts-th example, so that all devices keep as many of it as of the batch.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, i: Array) -> tuple[Any, None]:
        part = jax.tree.map(lambda x: x[i], split_batch)
        found = differentiate(params, part, jax.random.fold_in(key, i))
        return jax.tree.map(lambda a, b: a + b / parts, total, found), None

    split_batch = jax.tree.map(split, dict(batch))
    shapes = jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], split_batch), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(parts))[0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
      step: jitted (state, frozen parameters, batch) → (state, metrics); the state is donated.
      state, frozen: as `jax.ShapeDtypeStruct`s with shardings.
      batch: the sharding of every array of a batch.
      optimizer: of the trainable parameters.
      accumulate: parts that a batch is worked off in.
    """

    step: Callable[..., Any]
    state: TrainState
    frozen: Any
    batch: NamedSharding
    optimizer: optax.GradientTransformation
    accumulate: int

    def create(self, trainable: Any) -> TrainState:
        """A fresh state in its shards."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        create = jax.jit(lambda params: create_state(params, self.optimizer), out_shardings=shardings)
        return create(trainable)

    def flops(self, batch: Any) -> float:
        """Operations of a step on such a batch over all devices, as the compiler counts them.

        After the first step the compiled program comes from the cache.
        """
        compiled = self.step.lower(self.state, self.frozen, batch).compile()
        operations = compiled.cost_analysis()["flops"] + kernel_cost(compiled.as_text())[0]
        # Of one device, and of one part: the compiler counts a loop's body once.
        return operations * self.batch.mesh.size * self.accumulate


def make_plan(config: TrainConfig, models: Models, schedule: ScheduleConfig, params: Any, mesh: Mesh) -> Plan:
    """The step of a run.

    Args:
      config: the run's.
      models, schedule: what is trained.
      params: {component: tree} of arrays or shapes, with the dtypes that the devices hold.
      mesh: where it runs.

    Raises:
      UserError: when a regex or a sharding rule of the config does not fit the parameters, or the batch does
        not divide among the devices.
    """
    partition.check_batch(config.batch_size, config.accumulate, mesh)
    options = config.optimizer
    rate = make_schedule(options.learning_rate, config.steps, options.warmup, options.end_fraction)
    optimizer = make_optimizer(rate, options.weight_decay, options.b2, options.max_norm, options.name)
    trainable, frozen = split_params(config, params)
    state = jax.eval_shape(lambda tree: create_state(tree, optimizer), trainable)
    state, frozen = (partition.with_shardings(tree, config.sharding, mesh) for tree in (state, frozen))
    batch = NamedSharding(mesh, partition.BATCH)
    loss = make_loss(config.stage, models, schedule, config.loss)

    def on_mesh(params: Any, batch: Batch, key: jax.Array) -> tuple[jax.Array, Metrics]:
        return loss(partition.gather_tables(params, mesh), batch, key)

    step = make_train_step(on_mesh, optimizer, rate, options.ema_decay, config.seed, config.accumulate)
    shardings = (jax.tree.map(lambda leaf: leaf.sharding, tree) for tree in (state, frozen))
    state_shardings, frozen_shardings = shardings
    jitted = jax.jit(
        step,
        in_shardings=(state_shardings, frozen_shardings, batch),
        out_shardings=(state_shardings, None),
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )
    return Plan(jitted, state, frozen, batch, optimizer, config.accumulate)
