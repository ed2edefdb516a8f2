"""The train step: its update, gradient accumulation, and non-finite steps, which are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from realcustom_jax.common.errors import UserError
from realcustom_jax.training import checkpoint
from realcustom_jax.training import step as step_module
from realcustom_jax.training.step import FiniteWatch, create_state, make_train_step

BAD = {"loss": (np.nan, 0.0), "gradient": (0.0, np.inf)}


def loss(params, batch, key):
    """(w − 1)² plus a term of the batch for the value alone and one for the gradient alone."""
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
def test_non_finite_step_changes_only_counters(step, kind):
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


def test_gradient_accumulation_equals_full_batch():
    """Least squares on 12 examples in 3 parts against all at once, Adam's update included.

    1e-5: float32 sums in another order.
    """

    def squares(params, batch, key):
        error = jnp.square(batch["x"] @ params["w"] - batch["y"])
        return error.mean(), {"largest": error.mean()}

    rng = np.random.default_rng(0)
    examples = {"x": rng.standard_normal((12, 4)), "y": rng.standard_normal(12)}
    examples = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), examples)
    optimizer = optax.adam(0.1)
    state = create_state({"w": jnp.ones(4)}, optimizer)
    results = []
    for parts in (1, 3):
        made = make_train_step(squares, optimizer, optax.constant_schedule(0.1), 0.5, 0, accumulate=parts)
        results.append(jax.jit(made)(state, {}, examples))
    (whole, whole_metrics), (accumulated, accumulated_metrics) = results
    np.testing.assert_allclose(accumulated.params["w"], whole.params["w"], rtol=1e-5)
    np.testing.assert_allclose(accumulated.opt_state[0].mu["w"], whole.opt_state[0].mu["w"], rtol=1e-5)
    for name in ("loss", "gradient_norm", "largest"):
        np.testing.assert_allclose(accumulated_metrics[name], whole_metrics[name], rtol=1e-5)


def test_accumulated_parts_have_own_random_numbers_and_examples():
    """A spy loss records the random number and the examples of each part."""
    seen = []

    def spy(params, batch, key):
        jax.debug.callback(lambda *x: seen.append(x), batch["x"], jax.random.uniform(key))
        return params["w"].sum(), {}

    optimizer = optax.sgd(0.1)
    made = make_train_step(spy, optimizer, optax.constant_schedule(0.1), 0.5, 0, accumulate=2)
    jax.block_until_ready(
        jax.jit(made)(create_state({"w": jnp.ones(1)}, optimizer), {}, {"x": jnp.arange(6)})
    )
    jax.effects_barrier()
    assert sorted(tuple(int(i) for i in part) for part, _ in seen) == [(0, 2, 4), (1, 3, 5)]
    assert float(seen[0][1]) != float(seen[1][1])


def test_finite_watch_names_steps_one_step_later():
    watch = FiniteWatch(limit=3)
    for step, count in ((7, 1), (8, 2), (9, 0), (10, 1), (11, 2), (12, 3)):
        watch.look(step, jnp.int32(count))
    with pytest.raises(UserError, match="not finite in 3 steps in a row, from step 10 to 12"):
        watch.look(13, jnp.int32(4))
    watch = FiniteWatch(limit=1)
    watch.look(5, jnp.int32(1))
    with pytest.raises(UserError, match="from step 5 to 5"):
        watch.flush()


class Pending:
    """The result of a program, which is under way until it is read."""

    under_way = 0

    def __init__(self, *_):
        Pending.under_way += 1
        assert Pending.under_way == 1

    def __int__(self) -> int:
        Pending.under_way -= 1
        return 1

    def __bool__(self) -> bool:
        return bool(int(self))


@pytest.mark.parametrize("check", [step_module.all_finite, checkpoint.leaf_checksums])
def test_checks_before_a_checkpoint_have_one_program_under_way(monkeypatch, check):
    """With 32 of them, devices that XLA simulates can wait for each other without end."""
    monkeypatch.setattr(Pending, "under_way", 0)
    monkeypatch.setattr(step_module, "_is_finite", Pending)
    monkeypatch.setattr(checkpoint, "_leaf_checksum", Pending)
    assert check({f"layer_{i}": np.ones(3, np.float32) for i in range(40)})
    assert Pending.under_way == 0
