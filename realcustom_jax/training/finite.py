"""Losses and gradients that are not finite: their updates are skipped, and too many in a row end the run."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from realcustom_jax.common.errors import UserError


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
