"""Arrays that are read when they are used, and trees of parameters made of them."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from realcustom_jax.weights.keys import flatten, unflatten

# (path, values in the file's dtype) → the parameter where it shall be.
Place = Callable[[str, np.ndarray], Any]
# Reading, transposing and casting a tensor leave the interpreter free for the next one.
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class LazyArray:
    """An array of a known shape that `np.asarray` reads, each time anew; nothing is kept.

    Attributes:
      shape: of the array.
      read: gives its values.
      dtype: of the values, None where only the file knows.
    """

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
        """The array that `function` makes of this one."""
        return LazyArray(shape, lambda: function(self.read()))


def place_params(params: Any, place: Place, report: Callable[[int], None] | None = None) -> Any:
    """A tree with every array where `place` puts it, few of them read at a time.

    Args:
      params: nested dict of `LazyArray`s.
      place: (path, values) → the parameter; called from several threads.
      report: is told the bytes of each parameter where it was placed; called from this thread.
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
            if len(waiting) > _THREADS:
                take()
        while waiting:
            take()
    return unflatten(placed)


def is_lazy(params: Mapping[str, Any]) -> bool:
    """Whether a tree holds arrays that were not read yet."""
    return any(isinstance(leaf, LazyArray) for leaf in flatten(params).values())
