"""The training state and the step that changes it."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import Array

from realcustom_jax.training.finite import choose
from realcustom_jax.training.losses import Batch, Loss, Metrics
from realcustom_jax.training.partition import merge


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
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        norm = optax.global_norm(gradients)
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, state.ema, params)
        finite = jnp.isfinite(value) & jnp.isfinite(norm)
        params, opt_state, ema = choose(
            finite, (params, opt_state, ema), (state.params, state.opt_state, state.ema)
        )
        skipped = state.skipped + ~finite
        in_a_row = jnp.where(finite, 0, state.skipped_in_a_row + 1)
        metrics = {
            "loss": value,
            "gradient_norm": norm,
            # The optimizer counts only the updates that it makes.
            "learning_rate": schedule(state.step - state.skipped),
            "skipped": skipped,
            "skipped_in_a_row": in_a_row,
            **metrics,
        }
        return TrainState(state.step + 1, params, opt_state, ema, skipped, in_a_row), metrics

    return step


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
