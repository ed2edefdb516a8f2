"""Lazy arrays, which are read from disk when they are used, and trees of parameters made of them."""

import collections
import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import flatten, unflatten

# (path, values in the file's dtype) → the parameter on its device and in its final dtype.
Place = Callable[[str, np.ndarray], Any]
# Reading, transposing and casting release the GIL, so threads overlap them.
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array of known shape that `np.asarray` reads. Every use reads it again; nothing is cached.

    Attributes:
      shape: shape of the array.
      read: returns the values.
      dtype: dtype of the values; None if only the file knows it.
    """

    # No cache, because a model's parameters would otherwise fill the host's memory once they are read.

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]
    dtype: Any = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        value = self.read()
        return value if dtype is None else value.astype(dtype, copy=False)

    def map(self, function: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> "LazyArray":
        """A lazy array of `function(values)`."""
        return LazyArray(shape, lambda: function(self.read()))


def place_params(params: Any, place: Place, report: Callable[[int], None] | None = None) -> Any:
    """Read and place all parameters of a tree, a few at a time.

    Args:
      params: nested dict of `LazyArray`s.
      place: (path, values) → the placed parameter; called from several threads.
      report: called with the size in bytes of each placed parameter, from this thread.
    """

    def load(path: str, leaf: LazyArray) -> tuple[Any, int]:
        value = place(path, leaf.read())
        return value, value.nbytes

    placed: dict[str, Any] = {}
    waiting: collections.deque[tuple[str, Future]] = collections.deque()

    def take() -> None:
        path, future = waiting.popleft()
        placed[path], size = future.result()
        if report:
            report(size)

    with ThreadPoolExecutor(_THREADS) as threads:
        for path, leaf in flatten(params).items():
            waiting.append((path, threads.submit(load, path, leaf)))
            # A short queue bounds the host memory: at most _THREADS + 1 tensors are in memory at once.
            if len(waiting) > _THREADS:
                take()
        while waiting:
            take()
    return unflatten(placed)
