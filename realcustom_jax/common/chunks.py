"""Runs a function over many rows so many at a time, so that no count of rows compiles another program."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SIZE = 32


def in_chunks(function: Callable[..., Sequence[Any]], *rows: Sequence[Any]) -> list[np.ndarray]:
    """Outputs for all rows, `SIZE` rows at a time, the last ones filled up with the last row.

    Args:
      function: lists of rows, one for each of `rows` → arrays, each with a row for each.
      *rows: sequences of one length, 1 or more.
    """
    outputs = []
    for start in range(0, len(rows[0]), SIZE):
        chunks = [list(some[start : start + SIZE]) for some in rows]
        count = len(chunks[0])
        padded = [chunk + chunk[-1:] * (SIZE - count) for chunk in chunks]
        outputs.append([np.asarray(found)[:count] for found in function(*padded)])
    return [np.concatenate(parts) for parts in zip(*outputs, strict=True)]
