"""A run's training step, from its config and the shapes of its parameters alone: nothing is allocated.

Training runs it; the ahead-of-time compiler compiles it for machines that are not there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from jax.sharding import Mesh, NamedSharding

from realcustom_jax.common.kernel_cost import kernel_cost
from realcustom_jax.common.precision import compiler_options
from realcustom_jax.diffusion.schedule import ScheduleConfig
from realcustom_jax.models.family import Models
from realcustom_jax.training import partition
from realcustom_jax.training.batches import split_params
from realcustom_jax.training.config import TrainConfig
from realcustom_jax.training.losses import Batch, Metrics, make_loss
from realcustom_jax.training.optimizer import make_optimizer, make_schedule
from realcustom_jax.training.state import TrainState, create_state, make_train_step


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
