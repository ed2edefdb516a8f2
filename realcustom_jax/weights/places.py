"""Positions of tensors in a file, and reading one tensor by its position."""

import dataclasses
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np

from realcustom_jax.common.errors import UserError


@dataclasses.dataclass(frozen=True)
class Place:
    """The position of one tensor in a file.

    Attributes:
      shape, dtype: shape and dtype of the tensor.
      pieces: (first byte, number of bytes) of its pieces; concatenated they are the values in C order. Most
        tensors have one piece.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: tuple[tuple[int, int], ...]


class Stamp(NamedTuple):
    """Size and modification time of a file, to notice that it was replaced or rewritten."""

    size: int
    changed: int

    @classmethod
    def of_file(cls, path: Path | int) -> "Stamp":
        """The stamp of a path or of an open file descriptor."""
        stat = os.stat(path)
        return cls(stat.st_size, stat.st_mtime_ns)


def read_place(path: Path, stamp: Stamp, key: str, place: Place) -> np.ndarray:
    """Read one tensor, and nothing else of the file.

    Args:
      path: the file.
      stamp: stamp of the file when its positions were read.
      key: name of the tensor, for messages.
      place: position of the tensor.

    Raises:
      UserError: the file cannot be read, or it has changed since its positions were read.
    """
    # Not memory-mapped: pages of a mapped file count as this process's memory, and a file that shrinks
    # meanwhile would kill the process.
    value = np.empty(place.shape, place.dtype)
    left = value.reshape(-1).view(np.uint8).data  # the bytes that are not read yet
    try:
        with open(path, "rb") as file:
            # The open file, not its path: the path could name another file a moment later.
            whole = Stamp.of_file(file.fileno()) == stamp
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
