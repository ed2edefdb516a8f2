"""Reading the parameters of a model, which takes half a minute for SDXL, with progress."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from realcustom_jax.common.progress import Progress
from realcustom_jax.weights.keys import flatten
from realcustom_jax.weights.lazy import Place, place_params


def read_told(
    params: Any,
    place: Place,
    progress: Progress,
    dtype: Callable[[str], Any] | None = None,
    what: str = "reading the model",
) -> Any:
    """As `place_params`, telling how many bytes are where they shall be.

    Args:
      params: nested dict of `LazyArray`s.
      place: (path, values) → the parameter; called from several threads.
      progress: what is told; its stage is `what` then.
      dtype: gives the dtype that `place` gives a parameter, by its path. Without it the total is not told.
      what: is being done.
    """
    total, done = None, 0
    if dtype is not None:
        sizes = (math.prod(x.shape) * np.dtype(dtype(path)).itemsize for path, x in flatten(params).items())
        total = sum(sizes)

    def report(size: int) -> None:
        nonlocal done
        done += size
        progress.amount(done, total, what)

    progress.stage(what)
    return place_params(params, place, report)
