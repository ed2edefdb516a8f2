"""The train step: what it changes, and that a step which is not finite changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realcustom_jax.errors import UserError
from realcustom_jax.training.finite import FiniteWatch
from realcustom_jax.training.state import create_state, make_train_step

BAD = {"loss": (np.nan, 0.0), "gradient": (0.0, np.inf)}


def loss(params, batch, key):
    """(w − 1)² plus what the batch adds to the value and to the gradient alone."""
    del key
    w = params["w"]
    spoilt = batch["gradient"] * (w - jax.lax.stop_gradient(w)).sum()
    return jnp.square(w - 1.0).sum() + batch["loss"] + jnp.where(jnp.isnan(spoilt), 0.0, spoilt), {}


@pytest.fixture(scope="module")
def step():
    optimizer = optax.adam(0.1)
    made = make_train_step(loss, optimizer, optax.constant_schedule(0.1), ema_decay=0.5, seed=0)
    return jax.jit(made), create_state({"w": jnp.zeros(3)}, optimizer)


def batch(value: float = 0.0, gradient: float = 0.0) -> dict:
    return {"loss": jnp.float32(value), "gradient": jnp.float32(gradient)}


@pytest.mark.parametrize("kind", BAD)
def test_a_step_that_is_not_finite_changes_only_the_counts(step, kind):
    run, state = step
    state, metrics = run(state, {}, batch())
    assert int(metrics["skipped"]) == int(metrics["skipped_in_a_row"]) == 0
    for count in (1, 2):
        skipped, metrics = run(state, {}, batch(*BAD[kind]))
        assert not (np.isfinite(metrics["loss"]) and np.isfinite(metrics["gradient_norm"]))
        for name in ("params", "opt_state", "ema"):
            jax.tree.map(np.testing.assert_array_equal, getattr(skipped, name), getattr(state, name))
        assert int(skipped.step) == int(state.step) + 1
        assert int(skipped.skipped) == int(skipped.skipped_in_a_row) == count
        state = skipped
    after, _ = run(state, {}, batch())
    assert (int(after.skipped), int(after.skipped_in_a_row)) == (2, 0)
    assert not np.array_equal(after.params["w"], state.params["w"])


def test_the_watch_names_the_steps_and_looks_one_step_back():
    watch = FiniteWatch(limit=3)
    for step, count in ((7, 1), (8, 2), (9, 0), (10, 1), (11, 2), (12, 3)):
        watch.look(step, jnp.int32(count))
    with pytest.raises(UserError, match="not finite in 3 steps in a row, from step 10 to 12"):
        watch.look(13, jnp.int32(4))
    watch = FiniteWatch(limit=1)
    watch.look(5, jnp.int32(1))
    with pytest.raises(UserError, match="from step 5 to 5"):
        watch.flush()
