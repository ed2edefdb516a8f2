"""Runs a jitted function over any number of rows in chunks of a fixed size, so that it compiles only once."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SIZE = 32


def in_chunks(function: Callable[..., Sequence[Any]], *rows: Sequence[Any] | np.ndarray) -> list[np.ndarray]:
    """Outputs of a function for all rows, computed `SIZE` rows at a time.

    Args:
      function: takes a list of `SIZE` rows for each of `rows`, and returns arrays (SIZE, …).
      *rows: sequences of the same length n, 1 or more.

    Returns:
      The arrays of `function`, each (n, …).
    """
    # The last chunk is padded with copies of its last row, and the outputs of the padding are dropped.
    outputs = []
    for start in range(0, len(rows[0]), SIZE):
        chunks = [list(some[start : start + SIZE]) for some in rows]
        count = len(chunks[0])
        padded = [chunk + chunk[-1:] * (SIZE - count) for chunk in chunks]
        outputs.append([np.asarray(output)[:count] for output in function(*padded)])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
