"""Where in a file the bytes of its tensors lie, and how one of them is read."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of one tensor in a file.

    Attributes:
      shape, dtype: of the tensor.
      pieces: (first byte, number of bytes) of its pieces, which joined are its values in C order. Most
        tensors have one.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]


class Stamp(NamedTuple):
    """What tells a file from one that took its place or was written again."""

    size: int
    changed: int

    @classmethod
    def of(cls, path: Path | int) -> "Stamp":
        """Of a path, or of an open file's number."""
        found = os.stat(path)
        return cls(found.st_size, found.st_mtime_ns)


def read_place(path: Path, stamp: Stamp, key: str, place: Place) -> np.ndarray:
    """Read one tensor; nothing else of the file comes into memory.

    Args:
      path: of the file.
      stamp: that it had when the places were found.
      key: what the tensor is called.
      place: where it lies.

    Raises:
      UserError: the file cannot be read, or is another than it was: there would be other numbers.
    """
    value = np.empty(place.shape, place.dtype)
    left = memoryview(value.reshape(-1).view(np.uint8))
    try:
        with open(path, "rb") as file:
            whole = Stamp.of(file.fileno()) == stamp
            for start, size in place.pieces if whole else ():
                file.seek(start)
                whole = whole and file.readinto(left[:size]) == size
                left = left[size:]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if not whole:
        raise UserError(
            f"{path} has changed since it was opened, so {key} cannot be read: load the model again"
        )
    return value
