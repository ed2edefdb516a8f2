"""The training step: the state, the update, skipped updates, and the step compiled with shardings."""

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
    """The tree `new` if the step was finite, else `old`."""
    # `where` instead of a Python branch: the condition is known only on the device.
    return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)


def all_finite(tree: Any) -> bool:
    """Whether all numbers of a tree are finite. Arrays stay sharded, so all processes must call it."""
    # One small compiled program for each shape; a model has few different shapes. Each result is awaited:
    # XLA's CPU devices may wait for each other without end once 32 programs are under way.
    return all(bool(_is_finite(leaf)) for leaf in jax.tree.leaves(tree))


@jax.jit
def _is_finite(leaf: Array) -> Array:
    return jnp.isfinite(leaf).all()


class FiniteWatch:
    """Stops a run after `limit` consecutive skipped updates.

    It checks the step before the one that was just dispatched, so the device never waits for the host.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._pending: tuple[int, Array] | None = None

    def look(self, step: int, skipped_in_a_row: Array) -> None:
        """Check the previous step and remember this one. Call it after every step.

        Raises:
          UserError: too many consecutive steps were skipped; it names the first and the last of them.
        """
        self.flush()
        self._pending = step, skipped_in_a_row

    def flush(self) -> None:
        """Check the remembered step now, as before a checkpoint. Raises the same error as `look`."""
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
    """Everything that a step changes; a checkpoint holds exactly this.

    Attributes:
      step: () int32, steps done.
      params: the trainable parameters, as a nested dict.
      opt_state: state of the optimizer.
      ema: exponential moving average of `params`.
      skipped, skipped_in_a_row: () int32, skipped updates: total, and consecutive up to now.
    """

    step: Array
    params: Any
    opt_state: Any
    ema: Any
    skipped: Array
    skipped_in_a_row: Array


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A new state. Jit this function with `out_shardings` to create the state in its shards."""
    # The step donates the whole state, and a buffer can be donated once only.
    copy = jax.tree.map(jnp.copy, params)
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
    """Make the pure step function (state, frozen parameters, batch) → (state, metrics).

    A step whose loss or gradient is not finite is skipped: only the counters change. With `accumulate` above
    1, the batch is split into that many parts and their gradients are averaged, which divides the memory for
    activations by that factor.
    """

    def step(state: TrainState, frozen: Any, batch: Mapping[str, Array]) -> tuple[TrainState, Metrics]:
        # Random numbers depend on (seed, step) alone, so a resumed run repeats them on any number of devices.
        key = jax.random.fold_in(jax.random.key(seed), state.step)

        def objective(params: Any, part: Batch, key: Array) -> tuple[Array, Metrics]:
            return loss(merge(params, frozen), part, key)

        differentiate = jax.value_and_grad(objective, has_aux=True)
        if accumulate == 1:
            (value, metrics), gradients = differentiate(state.params, batch, key)
        else:
            (value, metrics), gradients = _accumulated(differentiate, state.params, batch, key, accumulate)
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        updated = _updated(optimizer, ema_decay, state, gradients, finite)
        with jax.numpy_dtype_promotion("standard"):  # optax computes floats from integer counts
            # The optimizer counts only the updates that it makes, so skipped steps do not move its schedule.
            rate = schedule(state.step - state.skipped)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            "learning_rate": rate,
            "skipped": updated.skipped,
            "skipped_in_a_row": updated.skipped_in_a_row,
            **metrics,
        }
        return updated, metrics

    return step


def _updated(
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    state: TrainState,
    gradients: Any,
    finite: Array,
) -> TrainState:
    """The state after one update, or with only its counters changed where the step was not finite."""
    with jax.numpy_dtype_promotion("standard"):  # optax computes floats from integer counts
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    # The decay starts low: early averages would otherwise be mostly the initial parameters.
    done = state.step.astype(jnp.float32)
    decay = jnp.minimum(ema_decay, (1.0 + done) / (10.0 + done))
    ema = jax.tree.map(functools.partial(_moving_average, decay), state.ema, params)
    params, opt_state, ema = choose(
        finite, (params, opt_state, ema), (state.params, state.opt_state, state.ema)
    )
    skipped = state.skipped + (~finite).astype(jnp.int32)
    in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
    return TrainState(state.step + 1, params, opt_state, ema, skipped, in_a_row)


def _moving_average(decay: Array, old: Array, new: Array) -> Array:
    return decay.astype(old.dtype) * old + (1.0 - decay).astype(old.dtype) * new


def _accumulated(differentiate: Callable[..., Any], params: Any, batch: Batch, key: Array, parts: int) -> Any:
    """Result of `differentiate(params, part, key)`, averaged over the parts of a batch."""

    def split(x: Array) -> Array:
        # (B, …) → (B/parts, parts, …) → (parts, B/parts, …). Strided, so that every part has examples of all
        # devices; contiguous parts would each lie on a few devices.
        return x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total: Any, i: Array) -> tuple[Any, None]:
        part = jax.tree.map(lambda x: x[i], split_batch)
        result = differentiate(params, part, jax.random.fold_in(key, i))
        return jax.tree.map(lambda a, b: a + b / parts, total, result), None

    split_batch = jax.tree.map(split, dict(batch))
    # The scan's carry needs its shapes before the first part is computed.
    shapes = jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], split_batch), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.scan(add, zeros, jnp.arange(parts))[0]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The compiled step of a run, with the shapes and shardings of everything that it takes.

    Attributes:
      step: jitted (state, frozen parameters, batch) → (state, metrics); the state is donated.
      state, frozen: trees of `jax.ShapeDtypeStruct`s with shardings.
      batch: the sharding of every array in a batch.
      optimizer: updates the trainable parameters.
      accumulate: gradient-accumulation steps per batch.
    """

    step: Callable[..., Any]
    state: TrainState
    frozen: Any
    batch: NamedSharding
    optimizer: optax.GradientTransformation
    accumulate: int

    def create(self, trainable: Any) -> TrainState:
        """A new state, created in its shards."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        create = jax.jit(lambda params: create_state(params, self.optimizer), out_shardings=shardings)
        return create(trainable)

    def flops(self, batch: Any) -> float:
        """Floating-point operations of one step, summed over all devices, as the compiler counts them."""
        # Call it after the first step: then the compiled program comes from the cache.
        compiled = self.step.lower(self.state, self.frozen, batch).compile()
        # The compiler does not see into Pallas kernels, so these report their own cost.
        operations = compiled.cost_analysis()["flops"] + kernel_cost(compiled.as_text())[0]
        # The count is for one device, and it counts the body of the accumulation loop once.
        return operations * self.batch.mesh.size * self.accumulate


def make_plan(config: TrainConfig, models: Models, schedule: ScheduleConfig, params: Any, mesh: Mesh) -> Plan:
    """Make the step of a run, with its shapes and shardings.

    Args:
      config: config of the run.
      models, schedule: the networks and the noise schedule.
      params: {component: tree} of arrays or shapes, in the dtypes that the devices hold.
      mesh: the devices.

    Raises:
      UserError: a regex or a sharding rule of the config does not fit the parameters, or the batch cannot be
        divided among the devices.
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
        out_shardings=(state_shardings, None),  # metrics are scalars: jit replicates them
        donate_argnums=0,
        compiler_options=compiler_options(mesh.devices.flat[0].platform),
    )
    return Plan(jitted, state, frozen, batch, optimizer, config.accumulate)
