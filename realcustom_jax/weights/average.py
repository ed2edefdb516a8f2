"""The mean of several models' weights: https://arxiv.org/abs/2203.05482.

Models that were trained on from the same weights can be averaged, and the mean is often better than each.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import flatten, unflatten
from realcustom_jax.weights.lazy import LazyArray


def average_params(trees: Sequence[Any]) -> Any:
    """The mean of several models' parameters.

    Args:
      trees: {component: its parameters} of each model, of numpy, JAX or lazy arrays of the same shapes.

    Returns:
      such a tree of float32 `LazyArray`s; a use reads the array of each model.
    """
    first, *others = map(flatten, trees)
    return unflatten({path: _mean(path, [first, *others]) for path in first})


def _mean(path: str, models: Sequence[Mapping[str, Any]]) -> LazyArray:
    def read() -> np.ndarray:
        # Summed in float64, so that the mean of equal values is that value.
        total = np.asarray(models[0][path]).astype(np.float64)
        for flat in models[1:]:
            total += np.asarray(flat[path])
        return (total / len(models)).astype(np.float32)

    return LazyArray(tuple(models[0][path].shape), read, np.dtype(np.float32))
