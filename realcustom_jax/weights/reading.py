"""Reading the parameters of a model with a progress report. SDXL takes half a minute."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from realcustom_jax.common.progress import Progress
from realcustom_jax.weights.keys import flatten
from realcustom_jax.weights.lazy import Place, place_params


def read_with_progress(
    params: Any,
    place: Place,
    progress: Progress,
    dtype: Callable[[str], Any] | None = None,
    what: str = "reading the model",
) -> Any:
    """`place_params` with a progress report in bytes.

    Args:
      params: nested dict of `LazyArray`s.
      place: (path, values) → the placed parameter; called from several threads.
      progress: receives the stage `what` and the bytes that are placed.
      dtype: path → the dtype that `place` casts to. Without it the report has no total.
      what: name of the stage.
    """
    total, done = None, 0
    if dtype is not None:
        # Bytes after the cast: a float16 file of 5 GB is 10 GB of float32 parameters.
        sizes = (math.prod(x.shape) * np.dtype(dtype(path)).itemsize for path, x in flatten(params).items())
        total = sum(sizes)

    def report(size: int) -> None:
        nonlocal done
        done += size
        progress.amount(done, total, what)

    progress.stage(what)
    return place_params(params, place, report)
